// Every limit of the system, by name. A limit that a user can meet has a line in the README of the
// folder that enforces it, and a test. Bytes unless the name says otherwise.
#ifndef PENSTOCK_COMMON_LIMITS_H
#define PENSTOCK_COMMON_LIMITS_H

#define KIB 1024ll
#define MIB (1024ll * KIB)
#define GIB (1024ll * MIB)

// --- options
#define OPTION_LIST_MAX 32          // values of an option that may be given more than once
#define OPTION_LIST_BYTES_MAX 8192  // of all of them in the environment

// --- files
#define CONFIG_JSON_MAX (1 * MIB)
#define TOKENIZER_JSON_MAX (64 * MIB)
#define TOKENIZER_SPLITS_MAX 16 // regular expressions of a pre-tokenizer
#define SAFETENSORS_HEADER_MAX (100 * MIB) // as the format's own library has it
#define SAFETENSORS_INDEX_MAX (64 * MIB)
#define MANIFEST_MAX (256 * MIB) // a line for each of CHECKPOINT_TENSORS_MAX tensors
#define CHECKPOINT_FILES_MAX 4096
#define CHECKPOINT_TENSORS_MAX 1000000
#define TENSOR_NAME_MAX 256
#define OPTION_FILE_MAX 4096 // an option's value in a file

// --- model (what the kernels' scratch and the codecs are sized for)
#define MODEL_LAYERS_MAX 1024
#define MODEL_MTP_LAYERS_MAX 16
#define MODEL_HIDDEN_MAX 65536
#define MODEL_HEADS_MAX 1024
#define MODEL_EXPERTS_MAX 4096
#define MODEL_EXPERTS_PER_TOKEN_MAX 64
#define MODEL_SHARED_EXPERTS_MAX 64
#define MODEL_VOCAB_MAX 1048576
#define MODEL_LORA_RANK_MAX 16384
#define MODEL_HEAD_DIM_MAX 1024
#define MODEL_INTERMEDIATE_MAX 1048576
#define CONTEXT_MAX (4 * 1024 * 1024) // tokens

// --- partition
#define TP_MAX 64       // ranks of a group
#define PP_MAX 64       // stages of a pipeline
#define NODES_MAX 4096 // that are planned for
#define PIPELINES_MAX 64 // replicas of one model
#define MODELS_MAX 16   // of a broker
#define PAUSED_PIPELINES_MAX 256 // that a queue remembers
#define KV_BLOCK_ROWS 64 // rows (tokens) of one KV block
#define SLOTS_MAX 4096  // sequences in a pipeline at once
#define STEP_ROWS_MAX 8192 // token budget of one step
#define ROW_BUCKETS_MAX 23 // for which steps are recorded (row_buckets.h)
#define STEPS_IN_FLIGHT_MAX 16
#define WAIT_FILL_MS 5ll       // a step may wait so long for more rows
#define WAIT_FILL_MS_MAX 60000ll
#define STEP_MS 250ll          // prefill is kept so small that a step takes no longer
#define STEP_MS_MAX 600000ll
#define DEVICE_THREADS_MAX 64 // of a CPU device; its scratch has room for all of them

// --- jobs (queue.md section 2)
#define JOB_ID_MAX 64
#define TENANT_MAX 64
#define QUEUE_NAME_MAX 64
#define JOB_BODY_MAX (8 * MIB)
#define JOB_MESSAGE_MAX (JOB_BODY_MAX + 64 * KIB) // one inbox entry
#define JOB_CUSTOM_ID_MAX 512
#define JOB_BATCH_MAX 64
#define JOB_META_MAX 16 // pairs
#define JOB_ATTEMPTS_MAX 20
#define JOB_ATTEMPTS_DEFAULT 5
#define JOB_MODEL_MAX 256
#define JOB_CLASSES 4
#define TENANT_WEIGHT_MAX 1000
#define MSGPACK_DEPTH_MAX 16
#define MSGPACK_MAP_MAX 1024 // pairs of one map
#define JOB_BODY_VALUES_MAX 262144 // strings, arrays and objects of a body
#define STOP_STRINGS_MAX 16
#define STOP_STRING_BYTES_MAX 256
#define STOP_IDS_MAX 16
#define LOGPROBS_MAX 20
#define TOP_K_MAX 1000000
#define DEFAULT_MAX_TOKENS 1024
#define MAP_PARENT_ID_MAX 48   // of a map_reduce job: its children's ids have more
#define MAP_CHUNKS_MAX 4096    // children of a level
#define MAP_LEVELS_MAX 8
#define MAP_BYTES_MAX (16 * MIB) // of the children's messages of a level
#define MAP_RESULTS_MAX (8 * MIB) // of the texts that a level made
#define MAP_CHUNK_TOKENS_MIN 16
#define MAP_OVERLAP_TOKENS 64  // where none is asked for, and a chunk has room
#define MAP_SEPARATOR_MAX 1024
#define RESULT_TTL_MS (24ll * 3600 * 1000)
#define JOB_TTL_MAX_MS (30ll * 24 * 3600 * 1000)
#define DEAD_TTL_MS (30ll * 24 * 3600 * 1000)
#define CANCEL_WAIT_MS 5000ll // a head may take to say what a job has that is given up
#define LEASE_MS (30ll * 1000)
#define RETRY_BASE_MS 1000ll
#define RETRY_MOST_MS (300ll * 1000)

// --- streams
#define STREAM_REPORT_MS 50ll   // a head tells text of a job with `stream` so often, or
#define STREAM_REPORT_TOKENS 32 // after so many tokens
#define STREAM_CHUNK_MAX (1 * MIB) // text of one TOKENS
#define STREAM_PENDING_MAX (64 * MIB) // a broker keeps text of all jobs that is not published

// --- wire
#define WIRE_HEADER_MAX (4 * KIB)
#define WIRE_BODY_MAX (64 * MIB) // control plane: JOB with a whole context of ids, RESULT, HELLO
#define GROUP_NAME_MAX 128
#define ENDPOINT_MAX 256
#define WIRE_LIST_MAX 16384 // running or finished jobs in one HELLO
#define HEARTBEAT_MS 1000ll
#define DEAD_AFTER_MS 5000ll
#define ALLOW_KEYS_MAX 1024 // public keys of an allow-list
#define TURN_MESSAGES_MAX 256 // of groups, good or bad, before the loop looks at anything else
#define BROKERS_MAX 4 // that a group connects to: one leads, the others stand by
#define BROKER_NAME_MAX 128
#define LEAD_MS 5000ll // lease of the leader, from a renewal on
#define FIGURES_RATE 65536ll // bytes a second that groups' figures take in Redis
#define FLEET_RECORD_MS 30000ll // what the leader says of its fleet is good for so long

// --- http (figures of a broker)
#define HTTP_CONNECTIONS_MAX 64
#define HTTP_TIMEOUT_S 10   // without a byte, then a connection ends
#define HTTP_REQUEST_MAX (32 * KIB) // memory of a connection, for request and headers

// --- health (what a daemon says of itself in a file)
#define HEALTH_MS 1000ll
#define HEALTH_STALE_MS 10000ll // a file older than this is of a daemon that hangs
#define HEALTH_FILE_MAX 2048

_Static_assert(JOB_MESSAGE_MAX > JOB_BODY_MAX, "a job holds its body and its other fields");
_Static_assert(MAP_PARENT_ID_MAX + sizeof "-m8-4096" - 1 <= JOB_ID_MAX, "children's ids are ids");
_Static_assert(CONTEXT_MAX * 4ll <= WIRE_BODY_MAX, "a JOB frame carries a whole context of ids");
_Static_assert(MAP_PARENT_ID_MAX + sizeof "-m8-4096" - 1 <= JOB_ID_MAX, "children's ids are ids");
_Static_assert(CONTEXT_MAX * 4ll + STREAM_CHUNK_MAX < WIRE_BODY_MAX, "a TOKENS frame fits");
_Static_assert(LEASE_MS > 3 * DEAD_AFTER_MS, "liveness ends before the lease does");
_Static_assert(LEASE_MS > 2 * LEAD_MS + DEAD_AFTER_MS, "a standby finds the jobs still leased");
_Static_assert(STEPS_IN_FLIGHT_MAX <= PP_MAX, "sanity");

#endif
