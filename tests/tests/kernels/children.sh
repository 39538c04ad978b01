# Devices on top of the uplink in another namespace, a port without a guard, and an uplink
# in a VRF: nobody but a machine sends with its address (row U2), and the host routes on
# what comes in by an uplink.
set -e

wait_for() {
    end=$(( $(date +%s) + $1 ))
    shift
    while ! "$@"; do
        if [ "$(date +%s)" -gt "$end" ]; then
            echo "in vain: $*"
            cat /tmp/agent
            ip addr
            netspawn-xdp counters
            exit 1
        fi
        sleep 0.1
    done
}
fail() { echo "FAILED: $*"; cat /tmp/agent; netspawn-xdp counters; exit 1; }
mac_of() { ip netns exec "$1" cat "/sys/class/net/$2/address" 2>/dev/null || ip -n "$1" -o link show "$2" | sed 's/.*link.ether \([0-9a-f:]*\) .*/\1/'; }
# Echo requests that a namespace has received.
echoes4() { ip netns exec "$1" awk '/^Icmp:/ { if (!n) { for (i = 2; i <= NF; i++) if ($i == "InEchos") n = i } else print $n }' /proc/net/snmp; }
echoes6() { ip netns exec "$1" awk '/^Icmp6InEchos/ { print $2 }' /proc/net/snmp6; }
martians() { netspawn-xdp --json counters | sed -n 's/.*"martian_source": *\([0-9]*\).*/\1/p'; }

for path in ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter; do echo 0 >/proc/sys/net/$path; done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
for name in net far tenant web evil; do
    ip netns add $name
    ip -n $name link set lo up
    for path in all default; do
        ip netns exec $name sh -c "echo 0 >/proc/sys/net/ipv4/conf/$path/rp_filter"
    done
done
ip link add eth0 type veth peer name lan0 netns net
ip link add eth1 type veth peer name lan1 netns far
addresses() {
    ip addr replace 203.0.113.10/24 dev eth0
    ip addr replace 2001:db8::10/64 dev eth0 nodad
    ip addr replace 198.51.100.10/24 dev eth1
    ip addr replace 2001:db8:51::10/64 dev eth1 nodad
}
for link in eth0 eth1; do ip link set $link up; done
addresses
ip -n net link set lan0 up
ip -n net addr add 203.0.113.1/24 dev lan0
ip -n net addr add 2001:db8::1/64 dev lan0 nodad
ip -n net link add link lan0 name lan0.7 type vlan id 7
ip -n net link set lan0.7 up
ip -n net addr add 10.7.0.1/24 dev lan0.7
ip -n net addr add 2001:db8:7::1/64 dev lan0.7 nodad
ip -n far link set lan1 up
ip -n far addr add 198.51.100.1/24 dev lan1
ip -n far addr add 2001:db8:51::1/64 dev lan1 nodad
ip -n far route add default via 198.51.100.10
ip -n far route add default via 2001:db8:51::10
ip link add ve-web type veth peer name host0 netns web
ip -n web link set host0 up
ip -n web addr add 203.0.113.2/32 dev host0
ip -n web addr add 2001:db8::2/128 dev host0 nodad
ip -n web route add default via 169.254.1.1 dev host0 onlink
ip -n web route add default via fe80::1 dev host0
ip link set ve-web up
mkdir -p /etc/netspawn/machines
echo 'addresses = ["203.0.113.2", "2001:db8::2"]' >/etc/netspawn/machines/web.toml

netspawn-xdp attach eth0 eth1 >/tmp/agent 2>&1 &
agent=$!
wait_for 60 grep -q "^ready: 1 machines" /tmp/agent
if grep -q "not protected" /tmp/agent; then fail "the kernel's structures cannot be read"; fi
for address in 203.0.113.2 2001:db8::2; do
    wait_for 10 ip netns exec net ping -q -c 1 -W 1 $address
done
for address in 203.0.113.1 2001:db8::1 198.51.100.1 2001:db8:51::1; do
    wait_for 10 ip netns exec web ping -q -c 1 -W 1 $address
done

# forged KIND RECEIVER NAMESPACE TO4 TO6: NAMESPACE pings as the machine; nobody hears it.
forged() {
    before4=$(echoes4 "$2"); before6=$(echoes6 "$2"); before=$(martians)
    ip netns exec "$3" ping -q -c 2 -i 0.2 -W 1 -I 203.0.113.2 "$4" >/dev/null 2>&1 || true
    ip netns exec "$3" ping -q -c 2 -i 0.2 -W 1 -I 2001:db8::2 "$5" >/dev/null 2>&1 || true
    if [ "$(echoes4 "$2")" != "$before4" ]; then fail "$1: IPv4 got through"; fi
    if [ "$(echoes6 "$2")" != "$before6" ]; then fail "$1: IPv6 got through"; fi
    dropped=$(( $(martians) - before ))
    if [ $dropped -lt 4 ]; then fail "$1: $dropped dropped"; fi
    echo "$1=closed"
}

# child KIND TO4 TO6 OWN4 OWN6 WORDS...: one in the tenant's namespace. It may send as itself.
child() {
    kind=$1 to4=$2 to6=$3 own4=$4 own6=$5
    shift 5
    ip link add link eth0 name c0 type "$@"
    ip link set c0 netns tenant
    ip -n tenant link set c0 up
    ip -n tenant addr add $own4/24 dev c0
    ip -n tenant addr add $own6/64 dev c0 nodad
    lan=lan0
    if [ $kind = vlan ]; then lan=lan0.7; fi
    mac=$(mac_of tenant c0)
    ip -n net neigh replace $own4 lladdr "$mac" dev $lan
    ip -n net neigh replace $own6 lladdr "$mac" dev $lan
    case $kind in
    ipvlan-l3*) ;;
    *)
        ip -n tenant neigh replace $to4 lladdr "$(mac_of net lan0)" dev c0
        ip -n tenant neigh replace $to6 lladdr "$(mac_of net lan0)" dev c0
        ;;
    esac
    wait_for 10 ip netns exec tenant ping -q -c 1 -W 1 -I $own4 $to4
    wait_for 10 ip netns exec tenant ping -q -c 1 -W 1 -I $own6 $to6
    ip -n tenant addr add 203.0.113.2/32 dev c0
    ip -n tenant addr add 2001:db8::2/128 dev c0 nodad
    forged $kind net tenant $to4 $to6
    ip -n tenant link del c0
    ip -n net neigh del $own4 dev $lan
    ip -n net neigh del $own6 dev $lan
}
child macvlan 203.0.113.1 2001:db8::1 203.0.113.71 2001:db8::71 macvlan mode bridge
child ipvlan-l2 203.0.113.1 2001:db8::1 203.0.113.72 2001:db8::72 ipvlan mode l2
child ipvlan-l3 203.0.113.1 2001:db8::1 203.0.113.73 2001:db8::73 ipvlan mode l3
child ipvlan-l3s 203.0.113.1 2001:db8::1 203.0.113.74 2001:db8::74 ipvlan mode l3s
child vlan 10.7.0.1 2001:db8:7::1 10.7.0.75 2001:db8:7::75 vlan id 7

# A port that nobody has declared; the host forwards for it.
ip link add ve-evil type veth peer name host0 netns evil
ip link set ve-evil up
ip addr add 10.9.0.1/24 dev ve-evil
ip addr add 2001:db8:9::1/64 dev ve-evil nodad
ip -n evil link set host0 up
ip -n evil addr add 10.9.0.2/24 dev host0
ip -n evil addr add 2001:db8:9::2/64 dev host0 nodad
ip -n evil route add default via 10.9.0.1
ip -n evil route add default via 2001:db8:9::1
for address in 198.51.100.1 2001:db8:51::1; do
    wait_for 10 ip netns exec evil ping -q -c 1 -W 1 $address
done
ip -n evil addr add 203.0.113.2/32 dev host0
ip -n evil addr add 2001:db8::2/128 dev host0 nodad
forged port far evil 198.51.100.1 2001:db8:51::1

# What comes in by an uplink is routed on, whatever its source, also in a VRF.
ip -n net addr add 203.0.113.2/32 dev lo
ip -n net addr add 2001:db8::2/128 dev lo nodad
ip -n net route add 198.51.100.0/24 via 203.0.113.10
ip -n net route add 2001:db8:51::/64 via 2001:db8::10
arrives() {
    before4=$(echoes4 far); before6=$(echoes6 far)
    ip netns exec net ping -q -c 1 -W 1 -I 203.0.113.2 198.51.100.1 >/dev/null 2>&1 || true
    ip netns exec net ping -q -c 1 -W 1 -I 2001:db8::2 2001:db8:51::1 >/dev/null 2>&1 || true
    [ "$(echoes4 far)" != "$before4" ] && [ "$(echoes6 far)" != "$before6" ]
}
wait_for 10 arrives
echo "routed=yes"
ip link add red type vrf table 10
ip link set red up
for link in eth0 eth1; do ip link set $link master red; done
addresses
wait_for 20 arrives
echo "vrf=yes"

netspawn-xdp detach
wait $agent
test ! -e /sys/fs/bpf/netspawn
