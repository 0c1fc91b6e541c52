# All tasks of this tree. `make help` lists them. A fresh Debian machine needs Go
# and make; missing packages are installed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GOTESTSUM := gotest.tools/gotestsum@v1.13.0

# For go's -exec, which splits words. Tests that need root report it themselves.
AS_ROOT := "'$(CURDIR)/hack/as-root.sh' --try"

# The time limit of the tests of one package.
TEST_TIMEOUT ?= 20m
# A selection of tests: make go-test PKG=./lb TESTFLAGS='-run Plan -count=1'
PKG ?= ./...
TESTFLAGS ?=
BENCH ?= .

# Debian has a directory of <asm/types.h> for each architecture.
export BPF_CFLAGS ?= -I/usr/include/$(shell uname -m)-linux-gnu

##@ Use it

.PHONY: build
build: ## Build bin/shunt, one static binary (the default)
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$$(hack/version.sh ldflags)" -o bin/shunt .

# The architectures of the images, and the name in the archives for `docker load`.
ARCHES ?= amd64 arm64
export IMAGE ?= shunt

.PHONY: image
image: ## OCI images of bin/image, without Docker: make image ARCHES=amd64 IMAGE=registry/shunt
	@hack/image.sh bin $(ARCHES)

.PHONY: push-image
push-image: ## Push them: make push-image TO=registry/shunt:v1.2.3
	@cd hack/image && go run . push $(CURDIR)/bin/image $(or $(TO),$(error TO=registry/name:tag is missing))

.PHONY: release
release: image ## The files of a release, in bin/release: binaries, images, manifests, SBOMs, checksums
	@hack/release.sh bin $(ARCHES)

.PHONY: sign
sign: ## Sign them and the pushed image, by cosign without a key: make sign TO=registry/shunt
	@hack/sign.sh bin $(or $(TO),$(error TO=registry/name is missing))

.PHONY: demo
demo: build ## Two nodes of pods, real requests, and a table of who answered (root)
	hack/as-root.sh bin/shunt demo

.PHONY: kind
kind: ## A kind cluster without kube-proxy, with shunt in its place (Docker)
	deploy/kind/up.sh

##@ Check it

# From fast to slow; setup first, since the others need it.
STEPS := setup build check-generate check-fmt check-tree vet lint tools test-tools go-test load-kernels

.PHONY: test
test: ## Install what is missing, run every check and all tests, print times
	@MAKE="$(MAKE)" hack/steps.sh $(STEPS)

.PHONY: setup
setup: setup-clang ## Install the Debian packages that tests need, where missing; try sudo
	@hack/as-root.sh true
	@hack/packages.sh gcc:gcc /usr/include/stdio.h:libc6-dev ip:iproute2 nft:nftables \
		iptables:iptables conntrack:conntrack

.PHONY: check-generate
check-generate: setup-clang ## Fail if generated files differ from their sources
	@hack/check-generate.sh

.PHONY: check-fmt
check-fmt: ## Fail if a Go file is not as gofmt has it
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi

.PHONY: check-tree
check-tree: ## Fail on overlong files, unfinished business and machine paths
	@hack/check-tree.sh

.PHONY: vet
vet: ## go vet
	go vet ./...

.PHONY: lint
lint: ## golangci-lint, with the import rules of the architecture
	@lint=$$(hack/tool.sh $(GOLANGCI_LINT)); "$$lint" run --allow-serial-runners ./...

.PHONY: tools
tools: ## Build etcd, kube-apiserver and kube-proxy into the cache, where missing
	@e2e/tools/build.sh etcd kube-apiserver kube-proxy

# Test binaries run as root, for namespaces and eBPF; the compiler does not.
.PHONY: go-test
go-test: ## Every test, with the race detector
	@sum=$$(hack/tool.sh $(GOTESTSUM)); \
	"$$sum" --format pkgname --format-hide-empty-pkg --post-run-command hack/summary.sh -- \
		-race -timeout $(TEST_TIMEOUT) -exec $(AS_ROOT) $(TESTFLAGS) $(PKG)

.PHONY: test-tools
test-tools: ## Tests of hack/image, a module of its own
	@cd hack/image && go vet ./... && go test ./...

.PHONY: test-image
test-image: ## Build the images twice and compare every byte (a minute; FRESH=1: without the compiler's cache)
	@hack/packages.sh qemu-aarch64-static:qemu-user-static || echo "without qemu-user"
	@hack/test-image.sh

# The packages that work without a kernel of the machine's own.
ARM64_PKG ?= ./maps ./health
# A test that opens a bpf file system by itself. The others skip where there is none.
ARM64_SKIP ?= TestOpenErrors

.PHONY: test-arm64
test-arm64: ## Tests of packages without kernel, for arm64 under qemu-user
	@hack/packages.sh qemu-aarch64-static:qemu-user-static || true
	@if hack/qemu.sh arm64 >/dev/null; then \
		GOARCH=arm64 CGO_ENABLED=0 go test -short -skip '$(ARM64_SKIP)' -timeout $(TEST_TIMEOUT) -exec "'$(CURDIR)/hack/qemu.sh' arm64" $(TESTFLAGS) $(ARM64_PKG); \
	else echo "not run: there is no qemu-user on this machine"; fi

.PHONY: check-workflows
check-workflows: ## actionlint, and that workflows call only what the Makefile has
	@lint=$$(hack/tool.sh $(ACTIONLINT)); "$$lint" .github/workflows/*.yaml
	@for t in $$(sed -nE 's/^ *- run: make ([a-z0-9-]+).*/\1/p' .github/workflows/*.yaml); do \
		grep -qE "^$$t:" Makefile || { echo "a workflow calls make $$t, which is not there"; exit 1; }; done
	@if grep -hE '^ *(- )?run:' .github/workflows/*.yaml | grep -vE 'run: (make|gh release create) '; then \
		echo "a workflow does what make does not"; exit 1; fi

SOAK_MINUTES ?= 30
SOAK_SEED ?=

.PHONY: soak
soak: tools ## Random faults against one daemon under traffic (half an hour): make soak SOAK_MINUTES=5 SOAK_SEED=1
	SOAK_MINUTES=$(SOAK_MINUTES) SOAK_SEED=$(SOAK_SEED) \
		go test -race -count=1 -v -timeout 0 -exec $(AS_ROOT) -run TestSoak ./e2e/soak

COEXIST_JSON ?= bin/coexist.json

.PHONY: coexist
coexist: tools ## Situations beside other programs: kube-proxy's two modes and shunt in one table (a minute)
	@mkdir -p $(dir $(COEXIST_JSON))
	@COEXIST_JSON=$(abspath $(COEXIST_JSON)) go test -count=1 -timeout 10m -exec $(AS_ROOT) ./e2e/coexist -v \
		| { grep -v '^ *\(=== \|--- PASS\|I[0-9]\{4\}\|PASS$$\)' || true; }

KERNELS ?= 5.10 6.1 6.12 newest

.PHONY: load-kernels
load-kernels: setup-kernels ## Maps and programs on every kernel of the matrix, packets on two, in VMs (minutes)
	@e2e/kernels/test.sh "$(KERNELS)" ./maps ./bpf ./kubeproxy
	@some="$(filter 5.10 newest,$(KERNELS))"; [ -z "$$some" ] || e2e/kernels/test.sh "$$some" ./e2e/packet -- -run TestPackets

.PHONY: test-kernels
test-kernels: setup-kernels ## The same, and the tests with packets and real sockets (hours)
	@SHUNT_VM_SECONDS=5400 e2e/kernels/test.sh "$(KERNELS)" ./maps ./bpf ./kubeproxy ./e2e/packet ./lab ./e2e/socket ./e2e/node

.PHONY: setup-kernels
setup-kernels: # what VMs need
	@hack/packages.sh qemu-system-x86_64:qemu-system-x86 /usr/share/seabios/bios-256k.bin:seabios \
		busybox:busybox-static modprobe:kmod cpio:cpio xz:xz-utils zstd:zstd \
		ip:iproute2 nft:nftables iptables:iptables conntrack:conntrack

BENCHFLAGS ?=

.PHONY: bench
bench: build tools ## shunt bench with a real API server and the real kube-proxy (half an hour)
	CGO_ENABLED=0 go build -o bin/withapi ./e2e/withapi
	hack/as-root.sh bin/withapi bin/shunt bench --kubeconfig {kubeconfig} --kube-proxy {kube-proxy} \
		--keep-objects $(BENCHFLAGS)

.PHONY: gobench
gobench: ## The benchmarks of parts, one package after the other: make gobench BENCH=Connect
	go test -run '^$$' -bench '$(BENCH)' -benchmem -p 1 -timeout 60m -exec $(AS_ROOT) $(TESTFLAGS) $(PKG)

##@ Change it

.PHONY: generate
generate: setup-clang ## Build the eBPF objects and their Go types anew
	go generate ./...

.PHONY: setup-clang
setup-clang: # what generate needs
	@hack/packages.sh clang-19:clang-19 llvm-strip-19:llvm-19 \
		/usr/include/bpf/bpf_helpers.h:libbpf-dev /usr/include/linux/bpf.h:linux-libc-dev

.PHONY: clean
clean: ## Remove what was built here; caches stay
	rm -rf bin

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
