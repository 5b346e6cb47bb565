#!/bin/bash
# Inside a guest of ./run: docker/beeline.service under a real systemd, installed with README's lines. Prints what was seen.
#
#	systemd-guest.sh CHECKOUT
#
# The uplink up0 (10.9.0.1) leads to a namespace `client` (10.9.0.2); the backend is a process on the node itself.
set -uo pipefail
checkout=$1
fail() {
	echo "FAIL $*"
	systemctl status beeline --no-pager -l 2>&1 | tail -n 20
	journalctl -u beeline --no-pager 2>&1 | tail -n 40
	exit 1
}
# until_ok SECONDS WHAT CMD...
until_ok() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "$what"; sleep 0.5; done
}
seen() { echo "SEEN $*"; }

if [ "${2-}" != inside ]; then
	ip netns add client
	ip link add up0 type veth peer name eth0 netns client
	ip addr add 10.9.0.1/24 dev up0 && ip link set up0 up
	ip -n client addr add 10.9.0.2/24 dev eth0 && ip -n client link set eth0 up
	nsenter --net=/run/netns/client ethtool -K eth0 tx off >/dev/null
	mkdir -p /opt/beeline /etc/beeline /run/units
	mount --bind "$checkout" /opt/beeline
	# Only Debian's own units, not those of this machine.
	cat >/run/units/story.service <<-UNIT
		[Unit]
		After=basic.target
		[Service]
		Type=oneshot
		TimeoutStartSec=infinity
		ExecStart=$checkout/test/vm/systemd-guest.sh $checkout inside
		StandardOutput=file:/run/story.out
		StandardError=file:/run/story.out
		SuccessAction=exit
		FailureAction=exit
	UNIT
	: >/run/story.out
	tail -f -n +1 /run/story.out & tail=$!
	env -i container=beeline-test PATH="$PATH" HOME=/root SYSTEMD_UNIT_PATH=/run/units:/run/systemd/system:/etc/beeline-units:/usr/lib/systemd/system \
		unshare --pid --mount --ipc --fork --mount-proc /lib/systemd/systemd --unit=story.service --log-level=notice --show-status=no &
	wait $!
	sleep 1
	kill $tail
	grep -q '^SEEN all' /run/story.out
	exit
fi

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin BEELINE_NO_BUILD=1
seen "systemd $(systemctl --version | head -1)"
# The first directory where `systemctl` finds units from outside is not /etc here.
mkdir -p /etc/beeline-units
install -D -m 644 /opt/beeline/docker/beeline.service /etc/beeline-units/beeline.service
cat >/etc/beeline/beeline.yaml <<'YAML'
node: { name: node1, address: 10.9.0.1 }
uplinks: [up0]
membership: { source: file, file: mesh.yaml }
YAML
cat >/etc/beeline/mesh.yaml <<'YAML'
nodes: [{ name: node1, address: 10.9.0.1 }]
services:
  - { name: web, ports: [{ published: 8080, target: 80 }], backends: [{ node: node1 }] }
YAML
/opt/beeline/dist/test/support/bin/httpd -n node1 -p 80 -L 900 &
dial() {
	nsenter --net=/run/netns/client /opt/beeline/dist/test/support/bin/load -n 10 -c 2 -t 10000 10.9.0.1:8080 |
		node -e 'const r = JSON.parse(require("fs").readFileSync(0, "utf8")); process.exit(r.ok === 10 && r.clients["10.9.0.2"] ? 0 : 1)'
}
systemctl daemon-reload || fail 'daemon-reload'
systemctl enable --now /etc/beeline-units/beeline.service || systemctl start beeline || fail 'enable --now'
until_ok 400 'beeline status' /opt/beeline/bin/beeline status
until_ok 200 'readyz' curl -sf --unix-socket /run/beeline/beeline.sock http://localhost/readyz
dial || fail 'what is published is not served'
seen 'served under systemd'
pid=$(systemctl show -p MainPID --value beeline)
seen "capabilities $(awk '/^CapBnd/ { print $2 }' "/proc/$pid/status"), no new privileges $(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")"
systemctl reload beeline || fail 'reload'
systemctl is-active -q beeline || fail 'not active after reload'
kill -9 "$pid"
dial || fail 'not served without the agent'
until_ok 100 'the restart' sh -c "p=\$(systemctl show -p MainPID --value beeline); [ \"\$p\" != 0 ] && [ \"\$p\" != $pid ]"
until_ok 400 'readyz after the restart' curl -sf --unix-socket /run/beeline/beeline.sock http://localhost/readyz
dial || fail 'not served after the restart'
seen 'killed, and started again'
systemctl disable --now beeline || fail 'disable --now'
dial || fail 'not served after systemctl stop'
seen 'stopped, and the datapath serves on'
/opt/beeline/bin/beeline detach --now || fail 'detach'
[ "$(bpftool prog show | grep -c -E 'uplink|endpoint_tc|connect4')" = 0 ] || fail 'programs are left'
ls /sys/fs/bpf | grep -q beeline && fail 'pins are left'
seen 'detached'
seen all
