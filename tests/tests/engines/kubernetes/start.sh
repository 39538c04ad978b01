# A cluster of this one node, without the network plugin's configuration.

# What kubelet insists on. Outside of the network these are the machine's own settings,
# so it is shown other files in their place.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 \
    kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$work/settings/${setting%=*}
    mkdir -p "${file%/*}"
    echo "${setting#*=}" > "$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding

# The container runtime.
cat > /etc/containerd/config.toml <<END
version = 2
root = "$work/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/tiny:1"
# The test may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
END
ln -s /usr/bin/netspawn-xdp /usr/lib/cni/netspawn-cni
systemctl start containerd
for _ in $(seq 100); do ctr version > /dev/null 2>&1 && break; sleep 0.1; done
ctr -n k8s.io images import $work/image/image.tar

cd $work
openssl genrsa -out sa.key 2048 2> /dev/null
echo 'token,admin,1,system:masters' > tokens
cat > kubeconfig <<END
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: token}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
END
dual="--feature-gates=IPv6DualStack=true"
services="--service-cluster-ip-range=$SERVICES"
runs() {
    unit=$1
    shift
    systemd-run -q --unit="$unit" "$@"
}
runs cluster-etcd etcd --data-dir $work/etcd
runs kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 "$services" $dual \
    --service-account-issuer=https://cluster --service-account-signing-key-file=$work/sa.key \
    --service-account-key-file=$work/sa.key --token-auth-file=$work/tokens \
    --authorization-mode=AlwaysAllow --allow-privileged=true --cert-dir=$work/pki \
    --advertise-address="$HOST4" --kubelet-preferred-address-types=InternalIP
export KUBECONFIG=$work/kubeconfig
for _ in $(seq 600); do kubectl get --raw /readyz > /dev/null 2>&1 && break; sleep 0.1; done
runs kube-controller-manager kube-controller-manager --kubeconfig=$work/kubeconfig "$services" \
    $dual --service-account-private-key-file=$work/sa.key --leader-elect=false \
    --cluster-cidr="$PODS"
runs kube-scheduler kube-scheduler --kubeconfig=$work/kubeconfig --leader-elect=false
runs kubelet kubelet --kubeconfig=$work/kubeconfig --hostname-override=node1 \
    --feature-gates=IPv6DualStack=true,LocalStorageCapacityIsolation=false \
    --container-runtime=remote \
    --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --root-dir=$work/kubelet --cgroup-driver=cgroupfs --cgroups-per-qos=false \
    --enforce-node-allocatable= --fail-swap-on=false --eviction-hard= --resolv-conf= \
    --image-gc-high-threshold=100 --kube-api-qps=50 --kube-api-burst=100
# It looks for its node, and ever more seldom.
for _ in $(seq 600); do kubectl get node/node1 > /dev/null 2>&1 && break; sleep 0.1; done
runs kube-proxy kube-proxy --kubeconfig=$work/kubeconfig --hostname-override=node1 $dual \
    --proxy-mode=iptables --masquerade-all --conntrack-max-per-core=0 \
    --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
