import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;

/** A consumer of the newer protocol of groups (KIP-848), for tests of lag: java -cp JARS THIS BOOTSTRAP TOPIC GROUP. */
class NewGroupConsumer {
    public static void main(String[] words) {
        Properties settings = new Properties();
        settings.putAll(Map.of(
            "bootstrap.servers", words[0], "group.id", words[2], "group.protocol", "consumer",
            "auto.offset.reset", "earliest", "enable.auto.commit", "false",
            "key.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer",
            "value.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer"));
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
            consumer.subscribe(List.of(words[1]));
            while (true) {
                consumer.poll(Duration.ofMillis(100));
                consumer.commitSync();
            }
        }
    }
}
