{{/*
The pod of a role, the same for all but for what is given:
  root, role, part, arguments, resources, startupSeconds; port (of the probes), portName, scheme;
  startupPath (instead of /startupz); preStopSeconds, graceSeconds; data (a volume source, or "claim" for one that the StatefulSet makes)
*/}}
{{- define "ctxpipe.pod" -}}
{{- $values := .root.Values -}}
{{- $selector := dict "root" .root "role" .role "part" .part -}}
{{- $secrets := include "ctxpipe.secrets" (dict "root" .root "role" .role) | fromYamlArray -}}
metadata:
  labels:
    {{- include "ctxpipe.labels" $selector | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- if not $values.existingConfigMap }}
    ctxpipe/config: {{ printf "%s%s" (include "ctxpipe.config" .root) (toYaml $values.contexts) | sha256sum }}
    {{- end }}
    kubectl.kubernetes.io/default-container: {{ .role }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "ctxpipe.serviceAccount" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .graceSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range $key := uniq (list $values.topologySpread.topologyKey "kubernetes.io/hostname") }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "ctxpipe.selector" $selector | nindent 10 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .role }}
      image: {{ include "ctxpipe.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args:
        {{- range .arguments }}
        - {{ . | quote }}
        {{- end }}
      env:
        - {name: CTXPIPE_CONFIG, value: /etc/ctxpipe/ctxpipe.yaml}
        {{- if eq .role "worker" }}
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- end }}
        {{- range $secrets }}
        - {name: {{ .name }}_FILE, value: /etc/ctxpipe-secrets/{{ .name }}}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: {{ .portName }}, containerPort: {{ int .port }}}
      startupProbe:
        httpGet: {path: {{ .startupPath | default "/startupz" }}, port: {{ .portName }}, scheme: {{ .scheme | default "HTTP" }}}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: {{ div (add .startupSeconds 4) 5 }}
      livenessProbe:
        httpGet: {path: /livez, port: {{ .portName }}, scheme: {{ .scheme | default "HTTP" }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: {{ .portName }}, scheme: {{ .scheme | default "HTTP" }}}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      {{- with .preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ int . }}}
      {{- end }}
      resources:
        requests: {cpu: {{ .resources.cpu | quote }}, memory: {{ .resources.memory | quote }}}
        limits: {memory: {{ .resources.memory | quote }}}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: config, mountPath: /etc/ctxpipe, readOnly: true}
        {{- if $secrets }}
        - {name: secrets, mountPath: /etc/ctxpipe-secrets, readOnly: true}
        {{- end }}
        - {name: tmp, mountPath: /tmp}
        {{- if .data }}
        - {name: data, mountPath: /data}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      projected:
        sources:
          - configMap:
              name: {{ include "ctxpipe.configMap" .root }}
              {{- if not $values.existingConfigMap }}
              items:
                - {key: ctxpipe.yaml, path: ctxpipe.yaml}
                {{- range $file, $_ := $values.contexts }}
                - {key: {{ printf "context.%s" $file | quote }}, path: {{ printf "contexts/%s" $file | quote }}}
                {{- end }}
              {{- end }}
          {{- range $values.secretFiles }}
          {{- $folder := .folder }}
          - secret:
              name: {{ .existingSecret }}
              items:
                {{- range .keys }}
                - {key: {{ . | quote }}, path: {{ printf "secrets/%s/%s" $folder . | quote }}}
                {{- end }}
          {{- end }}
    {{- if $secrets }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- range $secrets }}
          - secret:
              name: {{ .existingSecret }}
              items: [{key: {{ .key | quote }}, path: {{ .name | quote }}}]
          {{- end }}
    {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 512Mi}
    {{- if and .data (ne .data "claim") }}
    - name: data
      {{- .data | nindent 6 }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Seconds from the wish to end a pod to SIGKILL: the pause before SIGTERM, what the role does then, and some. */}}
{{- define "ctxpipe.grace" -}}
{{- $pause := dig "running" "pause_s" 5 .root.Values.config | ceil | int -}}
{{ add (int .preStopSeconds) $pause .root.Values.drainSeconds 10 }}
{{- end -}}
