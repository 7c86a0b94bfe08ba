{{/* ctxpipe.yaml: what the values say, and beside it what only the chart can know. */}}
{{- define "ctxpipe.config" -}}
{{- $root := . -}}
{{- $config := deepCopy .Values.config -}}
{{- /* while it pauses, serve asks its callers to close their connections, so that none sends into a closing one */ -}}
{{- $running := dict "metrics_host" "0.0.0.0" "drain_s" .Values.drainSeconds "pause_s" 5 -}}
{{- $_ := set $config "running" (mergeOverwrite $running ($config.running | default dict)) -}}
{{- $serve := dict "host" "0.0.0.0" "port" .Values.serve.port "data_directory" "/data" -}}
{{- if .Values.serve.unprotected }}{{ $_ := set $serve "unprotected" true }}{{ end -}}
{{- $_ := set $config "serve" (mergeOverwrite $serve ($config.serve | default dict)) -}}
{{- $collector := dict "host" "0.0.0.0" "scrape" (include "ctxpipe.pages" . | fromYamlArray) -}}
{{- if .Values.collector.enabled -}}
{{- $port := dig "collector" "port" 9108 .Values.config | int -}}
{{- $_ := set $collector "url" (printf "http://%s-collector:%d" (include "ctxpipe.fullname" .) $port) -}}
{{- end -}}
{{- $_ := set $config "collector" (mergeOverwrite $collector ($config.collector | default dict)) -}}
{{- with $config.canary -}}
{{- if not .url }}{{ $_ := set . "url" (include "ctxpipe.replicas" $root | fromYamlArray) }}{{ end -}}
{{- end -}}
{{- $kafka := dict "group.instance.id" "${POD_NAME:-}" -}}
{{- $_ := set $config "kafka" (mergeOverwrite $kafka ($config.kafka | default dict)) -}}
{{- if and .Values.contexts (not $config.contexts) }}{{ $_ := set $config "contexts" (list "contexts/*.yaml") }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Addresses of the serving replicas that are always there. */}}
{{- define "ctxpipe.replicas" -}}
{{- $serve := .Values.serve -}}
{{- $count := $serve.autoscaling.enabled | ternary $serve.autoscaling.minReplicas ($serve.replicas | default 2) | int -}}
{{- $name := printf "%s-serve" (include "ctxpipe.fullname" .) -}}
{{- $scheme := ternary "https" "http" (hasKey ($.Values.config.serve | default dict) "tls") -}}
{{- range $i := until (ternary $count 0 $serve.enabled) }}
- {{ $scheme }}://{{ $name }}-{{ $i }}.{{ $name }}-pods:{{ int $serve.port }}
{{- end -}}
{{- end -}}

{{/* Metrics pages of all pods that are always there, for the collector; those of serve where it has a key for them. */}}
{{- define "ctxpipe.pages" -}}
{{- $name := include "ctxpipe.fullname" . -}}
{{- if or (not .Values.config.access) (dig "collector" "scrape_key" "" .Values.config) }}
{{- range include "ctxpipe.replicas" . | fromYamlArray }}
- {{ . }}/metrics
{{- end }}
{{- end }}
{{- range $part, $worker := .Values.workers }}
{{- $least := int ($worker.replicas | default 2) -}}
{{- if dig "autoscaling" "enabled" false $worker }}{{ $least = int (dig "autoscaling" "minReplicas" 1 $worker) }}{{ end -}}
{{- range $i := until $least }}
- http://{{ $name }}-worker-{{ $part }}-{{ $i }}.{{ $name }}-worker-{{ $part }}:{{ int $.Values.metrics.port }}/metrics
{{- end }}
{{- end }}
{{- if .Values.connect.enabled }}
{{- range .Values.connect.sources | default (list "all") }}
- http://{{ $name }}-connect-{{ . | replace "_" "-" }}:{{ int $.Values.metrics.port }}/metrics
{{- end }}
{{- end }}
{{- end -}}

{{/* The secrets of one role: its own before those of all. (root, role) → YAML list of {name, existingSecret, key} */}}
{{- define "ctxpipe.secrets" -}}
{{- $chosen := dict -}}
{{- $role := .role -}}
{{- range .root.Values.secrets -}}
{{- if not .roles }}{{ $_ := set $chosen .name . }}{{ end -}}
{{- end -}}
{{- range .root.Values.secrets -}}
{{- if has $role (.roles | default list) }}{{ $_ := set $chosen .name . }}{{ end -}}
{{- end -}}
{{- range $name, $one := $chosen }}
- {name: {{ $name }}, existingSecret: {{ $one.existingSecret }}, key: {{ $one.key | quote }}}
{{- end -}}
{{- end -}}
