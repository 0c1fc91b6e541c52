#!/bin/bash
# up.sh: a kind cluster without kube-proxy, shunt in its place, and a few requests
# to see that it serves. Run again, it brings a changed shunt into the same cluster.
# `kind delete cluster --name shunt` removes everything.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
deploy=$(dirname "$here")
tree=$(dirname "$deploy")
cluster=shunt
image=shunt:dev
api=$cluster-control-plane:6443

# Never the cluster that the user works with otherwise.
kubectl() { command kubectl --context "kind-$cluster" "$@"; }

say() { echo "kind: $*" >&2; }
fail() { say "$@"; exit 1; }

# Says all that is missing at once.
need() {
	local missing=()
	for tool in docker kind kubectl; do
		type -P "$tool" >/dev/null || missing+=("$tool")
	done
	[ ${#missing[@]} = 0 ] || say "missing: ${missing[*]}. Install what is missing; nothing else needs it, and 'make test' does without."
	type -P docker >/dev/null && ! docker info >/dev/null 2>&1 &&
		fail "docker is here but its engine does not answer: start it, or join the docker group."
	[ ${#missing[@]} = 0 ] || exit 1
}

# The API server by the control plane's name, which every node can resolve.
manifests() {
	local text
	text=$(command kubectl kustomize "$deploy")
	[[ $text == *'apiserver: ""'* ]] || fail "config.yaml has no empty apiserver to fill in"
	echo "${text/apiserver: \"\"/apiserver: \"$api\"}"
}

deploy() {
	docker build --tag "$image" "$tree"
	kind get clusters 2>/dev/null | grep -qx "$cluster" || kind create cluster --config "$here/cluster.yaml"
	kind export kubeconfig --name "$cluster"
	kind load docker-image --name "$cluster" "$image"
	manifests | kubectl apply -f -
	# The same tag, but another image: let every pod start anew.
	kubectl -n kube-system rollout restart daemonset/shunt
	kubectl -n kube-system rollout status daemonset/shunt --timeout=3m
	# Up only once the kubernetes Service is: so Services work for pods.
	kubectl -n kube-system rollout status deployment/coredns --timeout=3m
}

ask() { kubectl -n shunt-smoke exec client -- "$@"; }

# answers URL: twenty requests in a row must be answered by more than one server.
answers() {
	local servers
	servers=$(ask sh -c "for i in \$(seq 20); do wget -q -T 2 -O - '$1' || echo failed; done" | sort | uniq -c)
	echo "$1:" && echo "$servers"
	[[ $servers != *failed* ]] || fail "not every request to $1 was answered"
	[ "$(wc -l <<<"$servers")" -gt 1 ] || fail "one server alone answered 20 requests to $1"
}

smoke() {
	local ip port node error
	kubectl apply -f "$here/smoke.yaml"
	kubectl -n shunt-smoke rollout status daemonset/server --timeout=3m
	kubectl -n shunt-smoke wait --for=condition=Ready pod/client --timeout=3m
	answers http://server.shunt-smoke.svc.cluster.local/ # by name: UDP to the DNS Service
	for ip in $(kubectl -n shunt-smoke get service server -o jsonpath='{.spec.clusterIPs[*]}'); do
		[[ $ip != *:* ]] || ip="[$ip]"
		answers "http://$ip/"
	done
	port=$(kubectl -n shunt-smoke get service server -o jsonpath='{.spec.ports[0].nodePort}')
	node=$(kubectl get node "$cluster-worker" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}')
	answers "http://${node%% *}:$port/"
	if error=$(ask wget -q -T 5 -O - http://nobody.shunt-smoke.svc.cluster.local/ 2>&1); then
		fail "a Service without endpoints answered"
	fi
	[[ $error == *"refused"* ]] || fail "a Service without endpoints was not refused at once: $error"
}

need
deploy
smoke
say "shunt serves. Try: kubectl --context kind-$cluster -n kube-system exec ds/shunt -- shunt status"
