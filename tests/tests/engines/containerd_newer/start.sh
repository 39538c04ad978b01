set -e
work=/var/lib/engines
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
mkdir $work/image
cd $work/image
tar -C /tiny -cf layer.tar .
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","1000000"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$(sha256sum layer.tar | cut -d' ' -f1)" > config.json
echo '[{"Config":"config.json","RepoTags":["localhost/tiny:1"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf image.tar config.json manifest.json layer.tar
ctr -n k8s.io images import image.tar
