# One static binary and nothing else. The eBPF objects are in the tree, so that no
# C compiler is needed.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=devel REVISION=
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X shunt/cmd.version=$VERSION -X shunt/cmd.revision=$REVISION" -o /shunt .

FROM scratch
COPY --from=build /shunt /usr/local/bin/shunt
# For `kubectl exec`; runtimes differ in what they set where an image says nothing.
ENV PATH=/usr/local/bin
ENTRYPOINT ["shunt"]
