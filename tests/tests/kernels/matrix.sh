# Frames through the programs, then a machine and a neighbor, plain and tagged. Says
# KEY=VALUE lines.
set -e

# The cost of a frame says nothing under emulation.
frames --test-threads=1 --skip cost_of_a_frame

wait_for() {
    end=$(( $(date +%s) + $1 ))
    shift
    while ! "$@"; do
        if [ "$(date +%s)" -gt "$end" ]; then
            echo "in vain: $*"
            cat /tmp/agent
            ip -n net neigh
            netspawn-xdp counters
            exit 1
        fi
        sleep 0.1
    done
}

machine() {
    ip netns add "$1"
    ip link add "ve-$1" type veth peer name host0 netns "$1"
    ip -n "$1" link set host0 up
    ip -n "$1" addr add "$2/32" dev host0
    ip -n "$1" addr add "$3/128" dev host0 nodad
    ip -n "$1" route add default via 169.254.1.1 dev host0 onlink
    ip -n "$1" route add default via fe80::1 dev host0
    ip link set "ve-$1" up
}

# A neighbor, and a host with two uplinks: one plain, the other with tags on it.
ip netns add net
ip link add eth0 type veth peer name lan0 netns net
ip link add trunk0 type veth peer name lan1 netns net
for link in eth0 trunk0; do ip link set $link up; done
for link in lan0 lan1; do ip -n net link set $link up; done
ip -n net addr add 203.0.113.1/24 dev lan0
ip -n net addr add 2001:db8::1/64 dev lan0 nodad
ip -n net link add link lan1 name lan1.30 type vlan id 30
ip -n net link set lan1.30 up
ip -n net addr add 198.51.100.1/24 dev lan1.30
ip -n net addr add 2001:db8:30::1/64 dev lan1.30 nodad
ip addr add 203.0.113.10/24 dev eth0
ip addr add 2001:db8::10/64 dev eth0 nodad
# Neighbors of that VLAN are found through the host's interface of it.
ip link add link trunk0 name trunk0.30 type vlan id 30
ip link set trunk0.30 up
ip addr add 198.51.100.10/24 dev trunk0.30
ip addr add 2001:db8:30::10/64 dev trunk0.30 nodad
machine web 203.0.113.2 2001:db8::2
machine tagged 198.51.100.2 2001:db8:30::2
mkdir -p /etc/netspawn/machines
echo 'addresses = ["203.0.113.2", "2001:db8::2"]' >/etc/netspawn/machines/web.toml
cat >/etc/netspawn/machines/tagged.toml <<END
addresses = ["198.51.100.2", "2001:db8:30::2"]
vlan = 30
END

netspawn-xdp attach eth0 trunk0 >/tmp/agent 2>&1 &
agent=$!
wait_for 60 grep -q "^ready: 2 machines" /tmp/agent
for address in 203.0.113.2 2001:db8::2 198.51.100.2 2001:db8:30::2; do
    wait_for 10 ip netns exec net ping -q -c 1 -W 1 $address
done
for address in 203.0.113.1 2001:db8::1; do
    wait_for 10 ip netns exec web ping -q -c 1 -W 1 $address
done
for address in 198.51.100.1 2001:db8:30::1; do
    wait_for 10 ip netns exec tagged ping -q -c 1 -W 1 $address
done

# That interface as an uplink of its own.
netspawn-xdp detach trunk0
echo 'addresses = ["198.51.100.2", "2001:db8:30::2"]' >/etc/netspawn/machines/tagged.toml
netspawn-xdp attach trunk0.30
for address in 198.51.100.2 2001:db8:30::2; do
    wait_for 10 ip netns exec net ping -q -c 1 -W 1 $address
done
for address in 198.51.100.1 2001:db8:30::1; do
    wait_for 10 ip netns exec tagged ping -q -c 1 -W 1 $address
done

# What programs say of frames is more for the verifier to walk.
kill $agent
wait $agent
netspawn-xdp attach eth0 trunk0.30 --log-programs >/tmp/agent 2>&1 &
agent=$!
wait_for 60 grep -q "^ready: 2 machines" /tmp/agent
ip -n net neigh flush dev lan0
wait_for 10 ip netns exec net ping -q -c 1 -W 1 203.0.113.2
wait_for 10 grep -q "frame of 42 bytes on interface .*: arp, no endpoint" /tmp/agent

if ls -d /sys/fs/bpf/netspawn/v*/uplinks/eth0/tc-ingress >/dev/null 2>&1; then
    echo hook=tcx
else
    echo hook=clsact
fi
netspawn-xdp detach
wait $agent
test ! -e /sys/fs/bpf/netspawn
