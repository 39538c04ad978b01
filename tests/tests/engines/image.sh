# An image made of busybox, also of what pods pause with.
set -e
work=/var/lib/engines
mkdir $work/image
cd $work/image
tar -C /tiny -cf layer.tar .
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","1000000"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$(sha256sum layer.tar | cut -d' ' -f1)" > config.json
echo '[{"Config":"config.json","RepoTags":["localhost/tiny:1"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf image.tar config.json manifest.json layer.tar

