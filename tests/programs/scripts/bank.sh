# A PostgreSQL server and clients that move money between accounts; each step asks whether any was lost.
exec >log.txt 2>&1
bin=$(dirname $(readlink -f $(command -v postgres)))
export PGDATA=$PWD/data PGHOST=$PWD PGDATABASE=postgres PGUSER=bank
$bin/initdb -U bank -A trust --no-sync >initdb.log 2>&1 || { cat initdb.log; exit 1; }
$bin/postgres -k $PWD -c listen_addresses= -c fsync=off -c shared_buffers=16MB >server.log 2>&1 &
server=$!
until $bin/pg_isready -q; do sleep 0.05; done
$bin/pgbench -i -q -s 1 >/dev/null 2>&1
for step in $(seq 0 19); do
    $bin/pgbench -n -c 4 -t 50 >/dev/null 2>bench.log || cat bench.log
    $bin/psql -Atc 'select sum(abalance) - (select sum(bbalance) from pgbench_branches), sum(abalance) - (select sum(tbalance) from pgbench_tellers), sum(abalance) - (select sum(delta) from pgbench_history), (select count(*) from pgbench_history) from pgbench_accounts'
    echo "step $step"
done
# Not at its end before it was killed as often as it is to be.
until [ -e finish ]; do sleep 0.01; done
$bin/pg_amcheck --install-missing --all && echo sound
kill -INT $server
wait $server
echo "ended $?"
