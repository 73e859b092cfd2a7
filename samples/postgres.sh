#!/usr/bin/env bash
# One batch in PostgreSQL, three launchers, one of them killed and started again; then the proof, from
# the log of the DES itself, that no row was started twice.
#
# It does on one machine what a compose file would do with containers: a server (Debian's package
# postgresql), a local DES, three launchers. All of it is in a temporary folder, listens on loopback
# alone, and is gone in the end. Needs deslaunch[postgres], which is found beside samples/ in .venv/bin
# or in PATH. Takes about ten seconds; ends with 0 if the proof holds, else with 1.
#
#     samples/postgres.sh
set -euo pipefail

samples=$(cd "$(dirname "$0")" && pwd)
PATH=$samples/../.venv/bin:$PATH
programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)  # Debian's, not in PATH
[ -x "$programs/initdb" ] || programs=$(dirname "$(command -v initdb)")
work=$(mktemp -d)
running=()

# What this machine is set up for must not reach the launchers, and they no real DES.
for name in $(compgen -e | grep -E '^(DES|DESLAUNCH|PG)' || true); do unset "$name"; done

say() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$1"; eval "$1"; }
runs() { cat "$work/runs.jsonl" 2> /dev/null | wc -l; }

# PostgreSQL refuses to run as root.
unprivileged() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

clean_up() {
    [ "$1" = 0 ] || tail -n 5 "$work"/launcher-*.log >&2 || true
    for pid in "${running[@]}"; do kill -9 "$pid" 2> /dev/null || true; done
    unprivileged "$programs/pg_ctl" stop -s -D "$work/server/data" -m immediate > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap 'clean_up $?' EXIT
trap 'exit 130' INT TERM

cd "$work"
export DESLAUNCH_CACHE_DIR=$work/cache DESLAUNCH_STATE_DIR=$work/state

say 'A PostgreSQL, with a role that owns one database and nothing else.'
PGPASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export PGPASSWORD
mkdir -m 700 server
echo "$PGPASSWORD" > server/password
chmod 711 .
[ "$(id -u)" != 0 ] || chown -R postgres server
unprivileged "$programs/initdb" --no-sync -A scram-sha-256 --pwfile server/password -U admin \
    server/data > initdb.log
port=$((20000 + RANDOM % 10000))
unprivileged "$programs/pg_ctl" start -s -w -D server/data -l server/log \
    -o "-p $port -k $work/server -c listen_addresses=127.0.0.1" || { cat server/log; exit 1; }
"$programs/psql" -q -h 127.0.0.1 -p "$port" -U admin postgres \
    -c "CREATE ROLE nightly LOGIN PASSWORD '$PGPASSWORD'" -c 'CREATE DATABASE exports OWNER nightly'

say 'A local DES, which gives 503 or 500 to 7 % of all starts.'
deslaunch simulate --faults "$samples/faults.json" --log runs.jsonl > url &
running+=($!)
until [ -s url ]; do sleep 0.1; done
DESLAUNCH_LEDGER=postgresql://nightly@127.0.0.1:$port/exports
DES_BASE_URL=$(cat url)
DES_TOKEN=simulated
export DESLAUNCH_LEDGER DES_BASE_URL DES_TOKEN
printf '$ export DESLAUNCH_LEDGER=%s DES_BASE_URL=%s\n' "$DESLAUNCH_LEDGER" "$DES_BASE_URL"

launch() {  # a launcher's number
    deslaunch run "$samples/night.csv" --ledger '#night' --resume --join --yes --max-wait 1 \
        --concurrency 8 --rate 100 > "launcher-$1.log" 2>&1 &
    launchers[$1]=$!
    running+=($!)
}

say 'Three launchers with the same command: one imports, the others wait for it, all of them send.'
printf '$ deslaunch run night.csv --ledger "#night" --resume --join --yes   (three times)\n'
launchers=()
for number in 1 2 3; do launch "$number"; done
until [ "$(runs)" -ge 500 ]; do kill -0 "${launchers[1]}"; sleep 0.05; done
show "deslaunch status '#night'"

say 'One of them is killed in the middle, and started again.'
printf '$ kill -9 %s\n' "${launchers[2]}"
kill -9 "${launchers[2]}"
wait "${launchers[2]}" 2> /dev/null || true
launch 2

say 'Each ends with the exit code of the whole batch: 0, or 4 where rows are unknown.'
codes=()
for number in 1 2 3; do
    code=0
    wait "${launchers[$number]}" || code=$?
    codes+=("$code")
    printf 'launcher %s: exit code %s\n' "$number" "$code"
done
show "deslaunch status '#night' 2>&1 | sed -n 1,8p"

say 'The results, by their state:'
show "deslaunch results '#night' -o results.csv 2>&1"
"$programs/psql" "$DESLAUNCH_LEDGER" \
    -c "SELECT state, count(*) FROM deslaunch.results WHERE batch = 'night' GROUP BY state"

say 'How many runs each launcher started:'
"$programs/psql" "$DESLAUNCH_LEDGER" -c "SELECT session, count(*) FROM deslaunch.attempts
    WHERE result = 'started' GROUP BY session ORDER BY session"

say "The proof, from the DES's own log; no two rows of night.csv say the same."
rows=$(($(wc -l < "$samples/night.csv") - 1))
twice=$(sed 's/.*"body"://' runs.jsonl | sort | uniq -d | wc -l)
unknown=$(cut -d, -f6 results.csv | grep -c '^unknown$' || true)
recorded=$(cut -d, -f6 results.csv | grep -c '^started$' || true)
cut -d'"' -f4 runs.jsonl | sort > logged
lost=$(cut -d, -f7 results.csv | tail -n +2 | sed '/^$/d' | sort | comm -23 - logged | wc -l)
printf '    %s runs are in its log\n' "$(runs)"
printf '    %s rows started twice\n' "$twice"
printf '    %s rows started, %s unknown, of %s\n' "$recorded" "$unknown" "$rows"
printf '    %s results name a run that the log does not have\n' "$lost"

[ "$twice" = 0 ] && [ "$lost" = 0 ] && [ "$unknown" -le 8 ] && [ $((recorded + unknown)) = "$rows" ] &&
    [ "${codes[*]}" = "${codes[0]} ${codes[0]} ${codes[0]}" ] ||
    { printf '\nThe proof FAILED\n' >&2; exit 1; }
