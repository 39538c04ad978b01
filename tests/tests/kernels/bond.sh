# A host whose uplink is a bond of two links to one switch, a machine on it, and a
# neighbor. Says KEY=VALUE lines.
set -e

now() { cut -d' ' -f1 /proc/uptime; }

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    end=$(( $(date +%s) + $1 ))
    shift
    while ! "$@"; do
        if [ "$(date +%s)" -gt "$end" ]; then
            echo "in vain: $*"
            cat /tmp/agent
            ip -n net neigh
            ip addr
            exit 1
        fi
        sleep 0.05
    done
}

# neighbor_is ADDRESS MAC: what the neighbor has in its table.
neighbor_is() { ip -n net neigh show "$1" | grep -q "lladdr $2"; }
neighbors_are() { neighbor_is 203.0.113.2 "$1" && neighbor_is 2001:db8::2 "$1"; }
mac_of() { cat "/sys/class/net/$1/address"; }
told() { grep -q "$1" /tmp/agent; }
answers() { ip netns exec net ping -n -c 1 -W 1 "$1"; }
# The groups of an interface are complete when it has its link-local address.
link_local() { ip -6 addr show dev "$1" scope link -tentative | grep -q inet6; }
programs_on() { netspawn-xdp --json status | grep -q "\"name\": *\"$1\""; }

# The module makes one that is not wanted.
ip link del bond0
ip netns add net
ip netns add web
ip -n net link add lan0 type bridge
ip -n net link set lan0 up
ip -n net addr add 203.0.113.1/24 dev lan0
ip -n net addr add 2001:db8::1/64 dev lan0 nodad
for number in 0 1; do
    ip link add s$number type veth peer name p$number netns net
    ip -n net link set p$number master lan0
    ip -n net link set p$number up
done
ip link add ve-web type veth peer name host0 netns web
ip -n web link set host0 up
ip -n web addr add 203.0.113.2/32 dev host0
ip -n web addr add 2001:db8::2/128 dev host0 nodad
ip -n web route add default via 169.254.1.1 dev host0 onlink
ip -n web route add default via fe80::1 dev host0
ip link set ve-web up
mkdir -p /etc/netspawn/machines
echo 'addresses = ["203.0.113.2", "2001:db8::2"]' >/etc/netspawn/machines/web.toml

host_on() {
    ip link set "$1" up
    ip addr add 203.0.113.10/24 dev "$1"
    ip addr add 2001:db8::10/64 dev "$1" nodad
    ip route add default via 203.0.113.1 dev "$1"
    ip route add default via 2001:db8::1 dev "$1"
}

# At first the uplink is a plain interface.
host_on s0
wait_for 10 link_local s0
before=$(ip maddr show dev s0)
netspawn-xdp attach s0 >/tmp/agent 2>&1 &
# Under emulation the verifier takes its time.
wait_for 120 told ^ready:
wait_for 10 answers 203.0.113.2
wait_for 10 answers 2001:db8::2
neighbors_are "$(mac_of s0)"

# It goes into a bond, and the programs with it.
ip addr flush dev s0
ip link set s0 down
ip link add bond0 type bond mode active-backup fail_over_mac active miimon 50
ip link set s0 master bond0
ip link set s1 master bond0
host_on bond0
wait_for 10 told "s0 is a port of the bond bond0"
wait_for 5 programs_on bond0
wait_for 10 answers 203.0.113.2
wait_for 10 answers 2001:db8::2
ip maddr show dev bond0 | grep -q 33:33:ff:00:00:02
wait_for 5 neighbors_are "$(mac_of bond0)"

# The other link takes over: the bond has its address then.
fail_over() {
    old=$(mac_of bond0)
    for to in 203.0.113.2 2001:db8::2 203.0.113.10; do
        ip netns exec net ping -n -i 0.05 -w 6 $to >/tmp/ping-$to 2>&1 &
        eval "ping_$(echo $to | tr -c '0-9a-f\n' _)=$!"
    done
    sleep 2
    start=$(now)
    "$@"
    while [ "$(mac_of bond0)" = "$old" ]; do sleep 0.01; done
    changed=$(now)
    wait_for 5 neighbors_are "$(mac_of bond0)"
    right=$(now)
    echo "change=$(echo "$start $changed" | awk '{print $2 - $1}')"
    echo "neighbor=$(echo "$changed $right" | awk '{print $2 - $1}')"
    wait $ping_203_0_113_2 $ping_2001_db8__2 $ping_203_0_113_10 || true
    for to in 203.0.113.2 2001:db8::2 203.0.113.10; do
        grep 'packets transmitted' /tmp/ping-$to | awk -v to=$to '{print "lost-" to "=" $1 - $4 " of " $1}'
    done
}
echo "by hand"
fail_over ip link set bond0 type bond active_slave s1
echo "by a link that fails"
fail_over ip -n net link set p1 down
ip -n net link set p1 up

# An agent that starts anew finds the bond; without bond all is as before.
ip addr flush dev bond0
ip link del bond0
wait_for 10 told "s0 is no port any more"
host_on s0
wait_for 5 programs_on s0
wait_for 10 answers 203.0.113.2
netspawn-xdp detach
wait_for 10 link_local s0
after=$(ip maddr show dev s0)
echo "$before" | sort >/tmp/before
echo "$after" | sort >/tmp/after
diff /tmp/before /tmp/after
test -z "$(ls /sys/fs/bpf)"
cat /tmp/agent
