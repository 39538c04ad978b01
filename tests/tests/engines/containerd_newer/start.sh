cat > /etc/containerd/config.toml <<END
version = 3
root = "$work/containerd"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/tiny:1"
[plugins."io.containerd.cri.v1.runtime"]
# The test may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
END
# Pods get a copy of it.
touch /etc/hosts
systemctl start containerd
ctr -n k8s.io images import $work/image/image.tar
