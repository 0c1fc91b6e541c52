# The image as `docker build` makes it: one static binary and nothing else. `make image` makes
# images without Docker. The eBPF objects are in the tree, so no C compiler is needed.
#
# Docker's older builder knows neither BUILDPLATFORM nor `RUN --mount`. So both have to work
# without: "linux" alone is the platform of the machine that builds, and the compiler's cache
# is kept by layers.
ARG GO_IMAGE=golang:1.26
FROM --platform=${BUILDPLATFORM:-linux} ${GO_IMAGE} AS build
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false -tags=node"
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# Most of the compiler's work is in these, and they change only with go.mod. The cache in this
# layer has them when our own files change.
ARG TARGETOS TARGETARCH
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH go build \
    github.com/cilium/ebpf/link \
    github.com/prometheus/client_golang/prometheus/promhttp \
    github.com/spf13/cobra \
    github.com/vishvananda/netlink \
    k8s.io/client-go/kubernetes \
    k8s.io/client-go/tools/clientcmd \
    k8s.io/client-go/tools/events \
    k8s.io/component-base/logs/api/v1 \
    k8s.io/kube-proxy/config/v1alpha1
COPY . .
ARG VERSION=devel REVISION=
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -ldflags "-s -w -X shunt/cmd.version=$VERSION -X shunt/cmd.revision=$REVISION" -o /shunt .

FROM scratch
ARG VERSION=devel REVISION=
LABEL org.opencontainers.image.title=shunt \
    org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$REVISION
COPY --from=build /src/LICENSE /src/NOTICE /usr/share/doc/shunt/
COPY --from=build /src/LICENSES /usr/share/doc/shunt/LICENSES
COPY --from=build /shunt /usr/local/bin/shunt
# For `kubectl exec`; runtimes differ in what they set where an image says nothing.
ENV PATH=/usr/local/bin
ENTRYPOINT ["shunt"]
