#!/bin/sh
# A job that writes durable truth to its node's own disk.
# Arguments: the file, seconds to run; anything: tell each second, and be short in a second attempt.
# Its exit code and output follow from its id, so that a result that belongs to another job is seen.
truth=$1 key=$SPOOLQ_JOB_ID.$SPOOLQ_ATTEMPT
say() { echo "$key $* $(date +%s.%N)" >> "$truth"; sync "$truth"; }
if [ -n "${3:-}" ] && [ "$SPOOLQ_ATTEMPT" != 1 ]; then set -- "$1" 3 "$3"; fi
say start
echo "early $key"
if [ -n "${3:-}" ]; then
    i=0
    while [ $i -lt "$2" ]; do sleep 1; say tick; i=$((i + 1)); done
else
    sleep "$2"
fi
echo "late $key"
say end
exit $((SPOOLQ_JOB_ID % 5))
