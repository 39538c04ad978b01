# Kubernetes from the archive's source package, which makes only kubectl a package of its
# own; then everything that was needed for that is removed. Some six minutes on two cores.
sed 's/^deb /deb-src /' /etc/apt/sources.list > /etc/apt/sources.list.d/source.list
apt-get -q update
apt-get -q install -y --no-install-recommends golang-go dpkg-dev
mkdir -p /build/src/k8s.io
cd /build
apt-get -q source --download-only kubernetes
dpkg-source --no-check --extract kubernetes_*.dsc src/k8s.io/kubernetes
cd src/k8s.io/kubernetes
export GO111MODULE=off GOPATH=/build GOCACHE=/build/cache CGO_ENABLED=0

# The API server wants the OpenAPI definitions, which are not in the source package.
nice -n 10 go build -o /build/openapi-gen ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
self=k8s.io/kubernetes
packages=$(grep -rl '+k8s:openapi-gen=' --include='*.go' vendor/k8s.io/*/ pkg cmd |
    grep -vE '_test|testdata|/test/|examples|sample|code-generator|kube-openapi' |
    xargs -n1 dirname | sort -u | sed "s#^#$self/#" | paste -sd,)
mkdir -p pkg/generated/openapi
/build/openapi-gen -i "$packages" -p $self/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r /build/violations

version=$(sed -n 's/^.*really\([0-9.]*\)-.*$/v\1/p; q' debian/changelog)
vendor=$self/vendor/k8s.io
nice -n 10 go build -o /usr/local/bin/ -ldflags "-s -w \
    -X $vendor/component-base/version.gitVersion=$version" \
    ./cmd/kubelet ./cmd/kube-apiserver ./cmd/kubectl ./cmd/kube-scheduler \
    ./cmd/kube-controller-manager ./cmd/kube-proxy
cd /
rm -r /build /etc/apt/sources.list.d/source.list
apt-get -q purge -y --autoremove golang-go dpkg-dev
rm -rf /var/cache/apt/archives /var/lib/apt/lists
