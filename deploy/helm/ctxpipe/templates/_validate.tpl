{{/* What the schema can't say, because it is about two values at once: all mistakes together. */}}
{{- define "ctxpipe.validate" -}}
{{- $values := .Values -}}
{{- $mistakes := list -}}
{{- $here := not $values.existingConfigMap -}}

{{- if and $values.existingConfigMap (or $values.config $values.contexts) -}}
{{- $mistakes = append $mistakes "existingConfigMap: it stands instead of config and contexts; leave those empty" -}}
{{- end -}}
{{- if $here -}}
{{- range $part := list "kafka" "redis" -}}
{{- if not (hasKey $values.config $part) -}}
{{- $mistakes = append $mistakes (printf "config.%s is missing, e.g. %s (or name an existingConfigMap)" $part (ternary "kafka: {bootstrap_servers: \"kafka:9092\"}" "redis: {url: \"${REDIS_URL}\"}" (eq $part "kafka"))) -}}
{{- end -}}
{{- end -}}
{{- if dig "running" "drain_s" false $values.config -}}
{{- $mistakes = append $mistakes "config.running.drain_s: set drainSeconds, which the grace of the pods follows" -}}
{{- end -}}
{{- if dig "serve" "port" false $values.config -}}
{{- $mistakes = append $mistakes "config.serve.port: set serve.port, which Service and probes follow" -}}
{{- end -}}
{{- range $text := list (toYaml $values.config) -}}
{{- range $found := regexFindAll "(?i)\"?[a-z_.]*(password|secret|api_key|token)\"?:[ ]+[\"']?[^$\\s\"'{\\[].*" $text -1 -}}
{{- $mistakes = append $mistakes (printf "config: %s holds a secret; put it into a Secret, name it under secrets, and write ${NAME}" (regexReplaceAll ":.*" $found "")) -}}
{{- end -}}
{{- if regexMatch "://[^/@\\s:]*:[^$/@\\s][^/@\\s]*@" $text -}}
{{- $mistakes = append $mistakes "config: an address holds a password; put the address into a Secret, name it under secrets, and write ${NAME}" -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range $values.secrets }}{{ $named = append $named .name }}{{ end -}}
{{- range $found := regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" (toYaml $values.config) -1 | uniq -}}
{{- $name := $found | trimPrefix "${" | trimSuffix "}" -}}
{{- $given := list -}}
{{- range $values.extraEnv }}{{ $given = append $given .name }}{{ end -}}
{{- if not (or (has $name $named) (has $name $given) (has (printf "%s_FILE" $name) $given)) -}}
{{- $mistakes = append $mistakes (printf "config: %s is not among secrets: add {name: %s, existingSecret: …, key: …}" $found $name) -}}
{{- end -}}
{{- end -}}
{{- if and $values.serve.enabled (not $values.serve.unprotected) (not $values.config.access) -}}
{{- $mistakes = append $mistakes "serve: whoever reaches it could read everything: add config.access (keys_file, jwt or mtls), or say serve.unprotected: true" -}}
{{- end -}}
{{- if and $values.canary.enabled (not $values.config.canary) -}}
{{- $mistakes = append $mistakes "canary: config.canary is missing, e.g. canary: {sources: {shop: {table: public.ctxpipe_canary}}}" -}}
{{- end -}}
{{- if and $values.canary.enabled $values.workers -}}
{{- $built := list -}}
{{- $all := false -}}
{{- range $values.workers -}}
{{- if ne (.role | default "all") "embedding" -}}
{{- if .contexts }}{{ $built = concat $built .contexts }}{{ else }}{{ $all = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $source, $_ := dig "canary" "sources" (dict) $values.config -}}
{{- if not (or $all (has (printf "canary_%s" $source) $built)) -}}
{{- $mistakes = append $mistakes (printf "workers: nobody builds canary_%s, the context that the canary travels in: add it to the contexts of one" $source) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $source := $values.connect.sources -}}
{{- if not (hasKey ($values.config.sources | default dict) $source) -}}
{{- $mistakes = append $mistakes (printf "connect.sources: config.sources has no %s" $source) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if and (not $values.serviceAccount.create) (not $values.serviceAccount.name) -}}
{{- $mistakes = append $mistakes "serviceAccount.name: name one that is there, or let one be created" -}}
{{- end -}}
{{- if and $values.serve.autoscaling.enabled $values.serve.replicas -}}
{{- $mistakes = append $mistakes "serve.replicas: the autoscaler decides it; take it out, or switch serve.autoscaling off" -}}
{{- end -}}
{{- if gt (int $values.serve.autoscaling.minReplicas) (int $values.serve.autoscaling.maxReplicas) -}}
{{- $mistakes = append $mistakes "serve.autoscaling: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- $partitions := include "ctxpipe.partitions" . | int -}}
{{- range $part, $worker := $values.workers -}}
{{- $processes := int ($worker.processes | default 1) -}}
{{- if dig "autoscaling" "enabled" false $worker -}}
{{- $least := int (dig "autoscaling" "minReplicas" 1 $worker) -}}
{{- $most := int (dig "autoscaling" "maxReplicas" (max 1 (div $partitions $processes)) $worker) -}}
{{- if $worker.replicas -}}
{{- $mistakes = append $mistakes (printf "workers.%s.replicas: KEDA decides it; take it out, or switch autoscaling off" $part) -}}
{{- end -}}
{{- if gt $least $most -}}
{{- $mistakes = append $mistakes (printf "workers.%s.autoscaling: minReplicas %d is more than maxReplicas %d" $part $least $most) -}}
{{- end -}}
{{- if and $here (gt (mul $most $processes | int) $partitions) -}}
{{- $mistakes = append $mistakes (printf "workers.%s.autoscaling: %d pods of %d processes are more than the %d partitions (config.kafka.partitions); the rest would idle" $part $most $processes $partitions) -}}
{{- end -}}
{{- if not (include "ctxpipe.groups" (dict "root" $ "worker" $worker) | fromYamlArray) -}}
{{- $mistakes = append $mistakes (printf "workers.%s.autoscaling.groups: name them ({group: …, topics: […]}); they follow by themselves only for bundles of contexts that are given as files and whose sources ctxpipe connects" $part) -}}
{{- end -}}
{{- if not (include "ctxpipe.brokers" $) -}}
{{- $mistakes = append $mistakes "keda.bootstrapServers: KEDA has to know where Kafka is" -}}
{{- end -}}
{{- else if and $here (gt (mul (int ($worker.replicas | default 2)) $processes | int) $partitions) -}}
{{- $mistakes = append $mistakes (printf "workers.%s: %d pods of %d processes are more than the %d partitions (config.kafka.partitions); the rest would idle" $part (int ($worker.replicas | default 2)) $processes $partitions) -}}
{{- end -}}
{{- end -}}
{{- if and $values.networkPolicy.enabled (not $values.networkPolicy.servers) -}}
{{- $mistakes = append $mistakes "networkPolicy.servers: say where Kafka, Redis and the sources are ({to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [9092]}); the roles reach nothing else, or switch networkPolicy off" -}}
{{- end -}}
{{- $authorization := $values.metrics.serviceMonitor.serveAuthorization -}}
{{- if ne (empty $authorization.existingSecret) (empty $authorization.key) -}}
{{- $mistakes = append $mistakes "metrics.serviceMonitor.serveAuthorization: existingSecret and key belong together" -}}
{{- end -}}
{{- if $mistakes -}}
{{- fail (printf "\n\n%d mistake(s) in the values of ctxpipe:\n- %s\n" (len $mistakes) (join "\n- " $mistakes)) -}}
{{- end -}}
{{- end -}}

{{/* Where KEDA reaches Kafka. */}}
{{- define "ctxpipe.brokers" -}}
{{- $kafka := .Values.config.kafka | default dict -}}
{{ .Values.keda.bootstrapServers | default (get $kafka "bootstrap_servers") | default (get $kafka "bootstrap.servers") }}
{{- end -}}

{{/* Groups and topics that a worker reads: as given, or as its contexts' files and schemas/topics.py have it. */}}
{{- define "ctxpipe.groups" -}}
{{- $given := dig "autoscaling" "groups" (list) .worker -}}
{{- $bad := "[^a-zA-Z0-9._-]" -}}
{{- if $given -}}
{{- toYaml $given -}}
{{- else if ne (.worker.role | default "all") "embedding" -}}
{{- $sources := .root.Values.config.sources | default dict -}}
{{- $chosen := .worker.contexts | default (list) -}}
{{- $groups := list -}}
{{- $unknown := false -}}
{{- range $file, $text := .root.Values.contexts -}}
{{- $spec := fromYaml $text -}}
{{- if or (not $chosen) (has $spec.context $chosen) -}}
{{- $version := int $spec.version -}}
{{- $topics := list (regexReplaceAll $bad (printf "ctxpipe.%s.v%d.dirty" $spec.context $version) "_") -}}
{{- range $_, $entity := $spec.entities | default dict -}}
{{- if ne "debezium" (dig $entity.source "connector" "" $sources) -}}
{{- $topics = append $topics (regexReplaceAll $bad (printf "%s.%s" $entity.source $entity.table) "_") -}}
{{- else -}}
{{- $unknown = true -}}
{{- end -}}
{{- end -}}
{{- $groups = append $groups (dict "group" (regexReplaceAll $bad (printf "ctxpipe.%s.v%d" $spec.context $version) "_") "topics" (uniq $topics)) -}}
{{- end -}}
{{- end -}}
{{- range $source, $canary := dig "canary" "sources" (dict) .root.Values.config -}}
{{- $context := printf "canary_%s" $source -}}
{{- if or (not $chosen) (has $context $chosen) -}}
{{- $topics := list (regexReplaceAll $bad (printf "ctxpipe.%s.v1.dirty" $context) "_") (regexReplaceAll $bad (printf "%s.%s" $source $canary.table) "_") -}}
{{- $groups = append $groups (dict "group" (printf "ctxpipe.%s.v1" $context) "topics" $topics) -}}
{{- end -}}
{{- end -}}
{{- if and (not $unknown) (or (not $chosen) (eq (len $groups) (len $chosen))) -}}
{{- toYaml $groups -}}
{{- else -}}
[]
{{- end -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}
