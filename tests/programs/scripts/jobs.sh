# Steps of a script that makes pipelines, jobs in the background and subshells all the time, and checks what they give.
step=0
while [ $step -lt 20 ]; do
    (for i in $(seq 1 40); do echo $i; done; sleep 0.2) | while read -r n; do echo $((n * n)); done | sort -n > squares &
    job=$!
    sum=$(seq 1 $((step + 10)) | awk '{ s += $1 } END { print s }')
    (exit $step)
    code=$?
    wait $job || echo "the job failed"
    [ "$(tail -n 1 squares)" = 1600 ] && [ "$(wc -l < squares)" = 40 ] || echo "squares are missing: $(wc -l < squares)"
    echo "$step $sum $code" >> log.txt
    echo "step $step"
    step=$((step + 1))
done
# Not at its end before it was killed as often as it is to be.
until [ -e finish ]; do sleep 0.01; done
