"""A DAG whose mapped tasks send one batch together, wherever Airflow runs them.

All tasks run the same command: one imports the night's manifest into PostgreSQL, the others wait
for it, and then all send, none a row that another has. A task that is killed or cleared is run
again with that command, too, and nothing is sent twice. See: deslaunch help postgres

The workers' environment has DESLAUNCH_LEDGER (postgresql://user@host/database), PGPASSWORD,
DES_BASE_URL and DES_TOKEN or another source of tokens; deslaunch[postgres] is installed there. For
Airflow 3; try it (the tasks then run one after the other):

    airflow dags test deslaunch_night 2026-01-31
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

LAUNCHERS = 4

COMMAND = "deslaunch run /srv/exports/{{ ds }}.csv --ledger '#night-{{ ds }}' --resume --join --yes"

with DAG(
    "deslaunch_night",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
):
    # All of them end with the exit code of the whole batch. Where Airflow ends a task, the operator
    # sends SIGTERM, and the launcher drains. A retry sends what is pending or failed, never what is
    # unknown: a batch with unknown rows stays failed until somebody has resolved them.
    BashOperator.partial(
        task_id="launch",
        bash_command=COMMAND,
        append_env=True,
        retries=3,
        retry_delay=timedelta(minutes=5),
    ).expand(env=[{"LAUNCHER": str(number)} for number in range(1, LAUNCHERS + 1)])
