#!/bin/bash
# Inside a guest of ./run: docker/beeline.service under a real systemd, installed with README's lines. Prints what was seen.
#
#	systemd-guest.sh CHECKOUT
#
# The uplink up0 (10.9.0.1) leads to a namespace `client` (10.9.0.2); the backend is a process on the node itself, then tasks of
# a swarm of one engine.
set -uo pipefail
checkout=$1
fail() {
	echo "FAIL $*"
	systemctl status beeline --no-pager -l 2>&1 | tail -n 20
	journalctl -u beeline --no-pager 2>&1 | tail -n 40
	cat /run/inner.json 2>/dev/null
	/opt/beeline/bin/beeline status
	/opt/beeline/bin/beeline services
	curl -s --unix-socket /run/beeline/beeline.sock http://localhost/metrics | grep -E 'program="socket"|beeline_map_entries'
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
	# Only Debian's own units, not those of this machine. In a container systemd leaves it to others to share mounts.
	cat >/run/units/story.service <<-UNIT
		[Unit]
		After=basic.target
		[Service]
		Type=oneshot
		TimeoutStartSec=infinity
		ExecStart=$checkout/test/vm/systemd-guest.sh $checkout inside
		StandardOutput=file:/run/story.out
		StandardError=file:/run/story.out
		FailureAction=exit
	UNIT
	: >/run/story.out
	tail -f -n +1 /run/story.out & tail=$!
	env -i container=beeline-test PATH="$PATH" HOME=/root SYSTEMD_UNIT_PATH=/run/units:/run/systemd/system:/etc/beeline-units:/usr/lib/systemd/system \
		unshare --pid --mount --ipc --fork --kill-child --mount-proc sh -c 'mount --make-rshared / && exec "$@"' sh \
		/lib/systemd/systemd --unit=story.service --log-level=notice --show-status=no &
	machine=$!
	until grep -q -E '^(SEEN all|FAIL)' /run/story.out || ! kill -0 $machine 2>/dev/null; do sleep 1; done
	sleep 3
	# What engines leave would hold it for minutes.
	kill -KILL $machine 2>/dev/null
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
detached() {
	/opt/beeline/bin/beeline detach --now || fail "detach $1"
	[ "$(bpftool prog show | grep -c -E 'uplink|endpoint_tc|connect4')" = 0 ] || fail "programs are left $1"
	ls /sys/fs/bpf | grep -q beeline && fail "pins are left $1"
	seen "detached $1"
}
detached 'of a file'

# The same with a swarm of one engine: its socket, its containers' namespaces, their interfaces.
D=(--host unix:///run/docker.sock --data-root /run/docker-data --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /story)
DOCKER_RAMDISK=1 dockerd "${D[@]}" --log-level warn >/run/dockerd.log 2>&1 &
until_ok 300 dockerd docker version
R=/run/rootfs BIN=/opt/beeline/dist/test/support/bin
mkdir -p $R/bin $R/etc $R/tmp $R/proc $R/sys $R/dev
cp /bin/busybox $R/bin/busybox && ln -s busybox $R/bin/sh && ln -s busybox $R/bin/hostname && ln -s busybox $R/bin/sleep
cp $BIN/httpd-static $R/httpd && cp $BIN/load-static $R/load
tar -C $R -c . | docker import --change 'CMD ["/bin/sh", "-c", "exec /httpd -n $(hostname) -p 80 -L 3000"]' --change 'ENV PATH=/bin' - story:latest >/dev/null || fail 'import'
docker swarm init --advertise-addr 10.9.0.1 --listen-addr 10.9.0.1:2377 >/dev/null || fail 'swarm init'
docker network create -d overlay --attachable red >/dev/null || fail 'network create'
docker service create -d --no-resolve-image --name web --replicas 2 --network red --publish 8080:80 story:latest >/dev/null || fail 'service create'
running() { [ "$(docker ps -q --filter label=com.docker.swarm.service.name=web | wc -l)" = "$1" ]; }
until_ok 200 'two tasks' running 2
{ cat /opt/beeline/docker/beeline.yaml; echo 'uplinks: [up0]'; } >/etc/beeline/beeline.yaml
systemctl start beeline || fail 'start with Docker'
until_ok 400 'readyz with Docker' curl -sf --unix-socket /run/beeline/beeline.sock http://localhost/readyz
# tasks N: N tasks answer, and see the client itself
tasks() {
	nsenter --net=/run/netns/client $BIN/load -n 20 -c 2 -t 10000 10.9.0.1:8080 |
		node -e 'const r = JSON.parse(require("fs").readFileSync(0, "utf8")); process.exit(r.ok === 20 && r.clients["10.9.0.2"] === 20 && Object.keys(r.backends).length === +process.argv[1] ? 0 : 1)' "$1"
}
until_ok 100 'both tasks answer' tasks 2
VIP=$(docker service inspect web --format '{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}' | tr ' ' '\n' | grep -v '^10.0.0.' | cut -d/ -f1 | head -n 1)
docker run -d --name inner --network red story:latest sleep 3000 >/dev/null || fail 'run'
by_socket() {
	docker exec inner /load -n 4 -t 10000 "$VIP:80" >/run/inner.json 2>&1
	curl -sf --unix-socket /run/beeline/beeline.sock http://localhost/metrics | grep -E 'beeline_packets_total\{.*deliver_vip.*\} [1-9]'
}
until_ok 100 "a dial of the VIP $VIP" by_socket
seen 'served a swarm under systemd'
docker service scale -d web=1 >/dev/null
until_ok 100 'one task is left' tasks 1
docker rm -f "$(docker ps -q --filter label=com.docker.swarm.service.name=web | head -n 1)" >/dev/null
until_ok 200 'the task that comes after a killed one' tasks 1
seen 'followed a swarm under systemd'
journalctl -u beeline --no-pager | grep -E '"level":(50|60)' && fail 'errors in the log'
systemctl stop beeline
tasks 1 || fail 'not served after systemctl stop'
detached 'of a swarm'
seen all
