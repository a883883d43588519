# A Redis server, and beside it clients that add to a counter, 5 at a time, over TCP; each step asks how far that is.
port=$((20000 + $$ % 10000))
redis-server --port $port --bind 127.0.0.1 --save "" --appendonly no --daemonize no >server.log &
server=$!
until redis-cli -p $port ping >/dev/null 2>&1; do sleep 0.05; done
for step in $(seq 0 19); do
    redis-benchmark -p $port -c 5 -n 12000 -P 3 incr counter >/dev/null
    redis-cli -p $port rpush steps $step >/dev/null
    redis-cli -p $port get counter
    echo "step $step"
done
# Not at its end before it was killed as often as it is to be.
until [ -e finish ]; do sleep 0.01; done
redis-cli -p $port lrange steps 0 -1 | tr '\n' ' '
redis-cli -p $port shutdown nosave
wait $server
echo "ended $?"
