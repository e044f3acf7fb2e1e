#!/usr/bin/env bash
# What the overlays come to, for whoever has no kustomize, and for the tests: rendered/NAME.yaml. Needs kubectl 1.27 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# sources: a digest of everything an overlay may be made of.
sources() { find . -type f ! -path './rendered/*' ! -name render.sh -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1; }

mkdir -p rendered
for overlay in overlays/*/; do
  name=$(basename "$overlay")
  { echo "# Made by deploy/kubernetes/render.sh; change overlays/$name instead. Sources: $(sources)"; kubectl kustomize "$overlay"; } >"rendered/$name.yaml.new"
  mv "rendered/$name.yaml.new" "rendered/$name.yaml"
done
