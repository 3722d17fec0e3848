{{/*
Refuses values that would have no effect, and combinations that no agent starts with. What only the types of values
tell is in values.schema.json.
*/}}
{{- define "flannel.checks" -}}
{{- $flannel := .Values.flannel -}}
{{- $backend := $flannel.backend -}}
{{- if not (has $backend (list "vxlan" "host-gw" "udp" "ipip" "wireguard")) -}}
{{- fail (printf "flannel.backend: %q is not in this version of flannel, which has vxlan, host-gw, udp, ipip and wireguard (and for other ways to install it extension and alloc)" $backend) -}}
{{- end -}}
{{- $has := dict
  "vxlan" (list "mtu" "vni" "GBP" "directRouting" "macPrefix")
  "ipip" (list "directRouting")
  "wireguard" (list "mtu" "wireguard" "psk" "tunnelMode" "keepaliveInterval" "backendPortv6") -}}
{{- range $name := concat (get $has "vxlan") (get $has "wireguard") -}}
{{- if and (index $flannel $name) (not (has $name (get $has $backend | default list))) -}}
{{- fail (printf "flannel.%s has no effect with the backend %s: leave it out" $name $backend) -}}
{{- end -}}
{{- end -}}
{{- if and (has $backend (list "host-gw" "ipip")) $flannel.backendPort -}}
{{- fail (printf "flannel.backendPort has no effect with the backend %s: leave it out" $backend) -}}
{{- end -}}
{{- if and (eq $backend "ipip") .Values.podCidrv6 -}}
{{- fail "podCidrv6: the backend ipip carries IPv4 only" -}}
{{- end -}}
{{- if not (or .Values.podCidr .Values.podCidrv6) -}}
{{- fail "podCidr and podCidrv6 are both empty: pods need addresses of one family at least" -}}
{{- end -}}
{{- if contains "," (print .Values.podCidr .Values.podCidrv6) -}}
{{- fail "podCidr and podCidrv6 take one network each" -}}
{{- end -}}
{{- $metrics := $flannel.metrics -}}
{{- if or $metrics.annotations $metrics.serviceMonitor.enabled -}}
{{- if or (hasPrefix "127." $flannel.healthz.ip) (eq $flannel.healthz.ip "::1") -}}
{{- fail (printf "flannel.metrics: no Prometheus reaches the health server at %s; set flannel.healthz.ip to 0.0.0.0 and close the port to others (docs/metrics.md)" $flannel.healthz.ip) -}}
{{- end -}}
{{- end -}}
{{- if and (or $metrics.annotations $metrics.serviceMonitor.enabled $metrics.perPeer) (not $flannel.healthz.port) -}}
{{- fail "flannel.metrics: there are no metrics without the health server: set flannel.healthz.port" -}}
{{- end -}}
{{- range $arg := $flannel.args -}}
{{- if hasPrefix "metrics-per-peer" (trimAll "-" $arg) -}}
{{- fail "flannel.args: values for each peer are flannel.metrics.perPeer" -}}
{{- end -}}
{{- range $name := list "ip" "port" -}}
{{- if hasPrefix (printf "healthz-%s" $name) (trimAll "-" $arg) -}}
{{- fail (printf "flannel.args: the %s of the health server is flannel.healthz.%s, which the probes need to know, too" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the kubelet asks: the address that is served, or the node's if all are. */}}
{{- define "flannel.probeHost" -}}
{{- $ip := .Values.flannel.healthz.ip -}}
{{- if not (has $ip (list "" "0.0.0.0" "::")) -}}
host: {{ $ip | quote }}
{{- end -}}
{{- end -}}

{{/* The image of flanneld. */}}
{{- define "flannel.image" -}}
{{ .Values.flannel.image.repository }}:{{ .Values.flannel.image.tag }}
{{- end -}}

{{/* The image of the CNI plugin, if it is another one. */}}
{{- define "flannel.cniImage" -}}
{{- with (.Values.flannel.flannel_cni | default dict).image -}}
{{- if .repository -}}
{{ .repository }}:{{ required "flannel.flannel_cni.image has a repository and no tag" .tag }}
{{- else if .tag -}}
{{- fail "flannel.flannel_cni.image has a tag and no repository" -}}
{{- end -}}
{{- end -}}
{{- end -}}
