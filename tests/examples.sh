#!/usr/bin/env bash
# Runs the examples of crate fdlink as a reader would, in network namespaces that need no root:
# `tests/examples.sh FOLDER`, where FOLDER holds the built examples. One line for each.
set -euo pipefail

if [ "${2:-}" != inside ]; then
  # Both namespaces end with this process, and what is in them with them.
  exec unshare --user --map-root-user --net --pid --fork --kill-child --mount-proc "$0" "$1" inside
fi
examples=$1
failed=0
report() { if [ "$2" = 0 ]; then echo "ok $1"; else echo "FAILED $1"; failed=1; fi; }

ip link set lo up
# ping0 — echo0 is one wire; host0 — port0 and port1 — host1 are two, which forward joins.
ip link add name ping0 type veth peer name echo0
ip link add name host0 type veth peer name port0
for link in ping0 echo0 host0 port0; do ip link set "$link" up; done
ip addr add 10.7.0.1/24 dev ping0
ip neigh add 10.7.0.2 lladdr 02:00:00:00:00:02 dev ping0

# dump: what ping sends to ourselves, twice on lo.
dumped=$(mktemp)
"$examples/dump" lo 4 >"$dumped" 2>/dev/null &
dump=$!
sleep 0.5
ping -q -c 3 -i 0.2 127.0.0.1 >/dev/null || true
wait $dump && [ "$(grep -c 'type 0x0800' "$dumped")" = 4 ] && status=0 || status=1
rm -f "$dumped"
report dump $status

# echo: the far end of the wire answers pings, without an IP address.
"$examples/echo" echo0 3 >/dev/null 2>&1 &
echo=$!
sleep 0.5
ping -q -c 3 -i 0.2 -W 2 10.7.0.2 >/dev/null && wait $echo && status=0 || status=1
report echo $status

# forward: two hosts, each in a namespace, joined by two interfaces in the middle.
unshare --net sleep 60 &
host=$!
sleep 0.3
ip link add name port1 type veth peer name host1 netns $host
ip link set port1 up
far() { nsenter --target $host --net "$@"; }
far ip link set host1 up
far ip addr add 10.8.0.2/24 dev host1
ip addr add 10.8.0.1/24 dev host0
"$examples/forward" port0 port1 >/dev/null 2>&1 &
forward=$!
sleep 0.5
far iperf3 -s -1 >/dev/null 2>&1 &
ping -q -c 2 -i 0.2 -W 2 10.8.0.2 >/dev/null && iperf3 -c 10.8.0.2 -n 50M >/dev/null && status=0 || status=1
kill $forward $host
report forward $status
exit $failed
