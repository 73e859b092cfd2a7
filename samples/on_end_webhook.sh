#!/bin/sh
# Post how a launch ended to a webhook, as a chat's or an alarm's takes it:
#   WEBHOOK_URL=https://… deslaunch run night.csv --yes --on-end samples/on_end_webhook.sh
# The whole summary is on stdin, as JSON; its counts are in variables. What this prints is shown.
set -eu

text="deslaunch: exit code $DESLAUNCH_EXIT_CODE"

if [ -n "${DESLAUNCH_ROWS:-}" ]; then # it is not there where the launch did not begin
    text="$text, $DESLAUNCH_STARTED of $DESLAUNCH_ROWS rows started,"
    text="$text $DESLAUNCH_UNKNOWN unknown ($DESLAUNCH_LEDGER)"
fi

text=$(printf %s "$text" | sed 's/["\\]/\\&/g') # of a ledger's name, for JSON

curl --silent --show-error --fail --max-time 20 \
    --header 'Content-Type: application/json' \
    --data "{\"text\": \"$text\"}" "$WEBHOOK_URL"
