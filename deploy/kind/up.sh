#!/bin/bash
# up.sh: a kind cluster without kube-proxy, shunt in its place, and a few requests to see that
# it serves. Run again, it brings a changed shunt into the same cluster.
# `kind delete cluster --name shunt` removes everything but the files in bin/kind.
#
#   up.sh                  builds the image of this tree, without Docker if there is Go
#   up.sh --image IMAGE    takes an image that docker has, such as one that was pulled
#
# The cluster's credentials are in bin/kind/kubeconfig. Your own kubeconfig is not touched.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
deploy=$(dirname "$here")
tree=$(dirname "$deploy")
cluster=shunt
api=$cluster-control-plane:6443
busybox=busybox:1.37 # as in smoke.yaml
state=$tree/bin/kind
kubeconfig=$state/kubeconfig
image='' # IMAGE, or what build makes
id=''    # changes with the image's content

kubectl() { command kubectl --kubeconfig "$kubeconfig" "$@"; }

say() { echo "kind: $*" >&2; }
fail() { say "$@"; exit 1; }

arguments() {
	while [ $# -gt 0 ]; do
		case $1 in
		--image) image=${2:?--image needs the name of an image}; shift 2 ;;
		--image=?*) image=${1#*=}; shift ;;
		-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
		*) say "$1: use --image IMAGE or nothing"; exit 2 ;;
		esac
	done
}

# Says all that is missing at once.
need() {
	local missing=() version
	for tool in docker kind kubectl; do
		type -P "$tool" >/dev/null || missing+=("$tool")
	done
	[ ${#missing[@]} = 0 ] || say "missing: ${missing[*]}. Install what is missing; nothing else needs it, and 'make test' does without."
	type -P docker >/dev/null && ! docker info >/dev/null 2>&1 &&
		fail "docker is here but its engine does not answer: start it, or join the docker group."
	[ ${#missing[@]} = 0 ] || exit 1
	version=$(docker info --format '{{.CgroupVersion}}')
	[ "$version" = 2 ] ||
		fail "the machine of docker's engine has cgroup v${version:-?}, and shunt's hooks need v2: boot it with systemd.unified_cgroup_hierarchy=1."
}

# The image by an archive if there is Go, else by docker; or the one that was asked for.
build() {
	local arch
	if [ -n "$image" ]; then
		docker image inspect "$image" >/dev/null 2>&1 || docker pull "$image"
	elif type -P go >/dev/null; then
		arch=$(docker version --format '{{.Server.Arch}}')
		IMAGE=shunt "$tree/hack/image.sh" "$tree/bin" "$arch"
		docker load --input "$tree/bin/image/shunt-linux-$arch.tar"
		image=shunt:$("$tree/hack/version.sh" version)
	else
		image=shunt:dev
		docker build --tag "$image" "$tree"
	fi
	id=$(docker image inspect --format '{{.Id}}' "$image")
}

# The manifests of deploy/ for this cluster. The API server goes by the control plane's name,
# which every node can resolve. The annotation makes pods anew if the image is another one of
# the same name, and only then.
overlay() {
	local name=$image tag=latest
	if [[ ${image##*/} == *:* ]]; then name=${image%:*} tag=${image##*:}; fi
	cat >"$state/kustomization.yaml" <<-END
		apiVersion: kustomize.config.k8s.io/v1beta1
		kind: Kustomization
		resources: [../../deploy]
		images: [{name: shunt, newName: "$name", newTag: "$tag"}]
		patches:
		  - target: {kind: ConfigMap, name: shunt}
		    patch: '[{op: replace, path: /data/apiserver, value: "$api"}]'
		  - target: {kind: DaemonSet, name: shunt}
		    patch: '[{op: add, path: /spec/template/metadata/annotations, value: {shunt/image-id: "$id"}}]'
	END
}

cluster_up() {
	if kind get clusters 2>/dev/null | grep -qx "$cluster"; then
		kind export kubeconfig --name "$cluster" --kubeconfig "$kubeconfig"
	else
		kind create cluster --config "$here/cluster.yaml" --kubeconfig "$kubeconfig"
	fi
	kind load docker-image --name "$cluster" "$image"
	# The nodes pull it by themselves where this fails, as with some stores of docker.
	docker image inspect "$busybox" >/dev/null 2>&1 || docker pull "$busybox"
	kind load docker-image --name "$cluster" "$busybox" || say "the nodes have to pull $busybox by themselves"
}

deploy() {
	overlay
	kubectl apply -k "$state"
	kubectl -n kube-system rollout status daemonset/shunt --timeout=3m
	# Up only once the kubernetes Service is: so Services work for pods.
	kubectl -n kube-system rollout status deployment/coredns --timeout=3m
}

# Where requests come from: a pod, and a container on the nodes' network that is no node.
from_pod() { kubectl -n shunt-smoke exec client -- "$@"; }
from_outside() { docker run --rm --network kind "$busybox" "$@"; }

# answers FROM URL: twenty requests in a row must be answered by more than one server.
answers() {
	local servers
	servers=$("$1" sh -c "for i in \$(seq 20); do wget -q -T 2 -O - '$2' || echo failed; done" | sort | uniq -c)
	echo "$1 $2:" && echo "$servers"
	[[ $servers != *failed* ]] || fail "$1: not every request to $2 was answered"
	[ "$(wc -l <<<"$servers")" -gt 1 ] || fail "$1: one server alone answered 20 requests to $2"
}

# url ADDRESS PORT
url() { if [[ $1 == *:* ]]; then echo "http://[$1]:$2/"; else echo "http://$1:$2/"; fi; }

smoke() {
	local ip port node error families=''
	kubectl apply -f "$here/smoke.yaml"
	kubectl -n shunt-smoke rollout status daemonset/server --timeout=3m
	kubectl -n shunt-smoke wait --for=condition=Ready pod/client --timeout=3m
	answers from_pod http://server.shunt-smoke.svc.cluster.local/ # by name: UDP to the DNS Service
	for ip in $(kubectl -n shunt-smoke get service server -o jsonpath='{.spec.clusterIPs[*]}'); do
		answers from_pod "$(url "$ip" 80)"
	done
	port=$(kubectl -n shunt-smoke get service server -o jsonpath='{.spec.ports[0].nodePort}')
	for node in $(kubectl get node "$cluster-worker" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}'); do
		answers from_pod "$(url "$node" "$port")"
		answers from_outside "$(url "$node" "$port")"
		if [[ $node == *:* ]]; then families+=6; else families+=4; fi
	done
	[[ $families == *4* && $families == *6* ]] || fail "node $cluster-worker lacks an address of IPv4 or IPv6"
	if error=$(from_pod wget -q -T 5 -O - http://nobody.shunt-smoke.svc.cluster.local/ 2>&1); then
		fail "a Service without endpoints answered"
	fi
	[[ $error == *"refused"* ]] || fail "a Service without endpoints was not refused at once: $error"
}

arguments "$@"
need
mkdir -p "$state"
build
cluster_up
deploy
smoke
say "shunt serves. Try: kubectl --kubeconfig $kubeconfig -n kube-system exec ds/shunt -- shunt status"
