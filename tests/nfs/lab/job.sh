#!/bin/sh
# A job that writes durable truth to its node's own disk.
# Arguments: the file, seconds to run; anything: tell each second, and be short in a second attempt.
# Its exit code and output follow from its id (of a task of an array from its number), so that a result that belongs to
# another job is seen. Of the environment: LAB_CODE another exit code; LAB_MARKS a directory on the export, for a file
# when it starts and one when it ends, which have the server's time; LAB_NEST how many jobs deep it waits for another.
truth=$1 key=$SPOOLQ_JOB_ID.$SPOOLQ_ATTEMPT number=${SPOOLQ_ARRAY_TASK_ID:-$SPOOLQ_JOB_ID}
say() { echo "$key $* $(date +%s.%N)" >> "$truth"; sync "$truth"; }
mark() { if [ -n "${LAB_MARKS:-}" ]; then : > "$LAB_MARKS/$key.$1"; fi; }
if [ -n "${3:-}" ] && [ "$SPOOLQ_ATTEMPT" != 1 ]; then set -- "$1" 3 "$3"; fi
say start
mark start
echo "early $key"
if [ -n "${3:-}" ]; then
    i=0
    while [ $i -lt "$2" ]; do sleep 1; say tick; i=$((i + 1)); done
elif [ "${LAB_NEST:-0}" != 0 ]; then
    export LAB_NEST=$((LAB_NEST - 1))
    "$LAB_PYTHON" -m spoolq sub --parsable -W -w "$SPOOLQ_NODE" sh "$0" "$@" >> "$truth.children"
else
    sleep "$2"
fi
echo "late $key"
mark end
say end
exit "${LAB_CODE:-$((number % 5))}"
