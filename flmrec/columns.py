"""Every column name and every table schema, once. Ids are strings outside, `*_idx` integers inside."""


class C:
    """Column names; no other module spells one out."""

    USER, ITEM, ID, SCORE, RANK = "user_id", "item_id", "id", "score", "rank"
    USER_IDX, ITEM_IDX, IDX = "user_idx", "item_idx", "idx"
    EVENT_TS, EVENT_ORDER, EVENT, VALUE = "event_ts", "event_order", "event", "value"
    TEXT, CONTENT_HASH = "text", "content_hash"
    SPLIT, PROTOCOL = "split", "protocol"
    INPUT_IDS, N_TOKENS, LENGTH, TOKENIZER = "input_ids", "n_tokens", "length", "tokenizer"
    WINDOW, WEIGHT, RATING = "window", "weight", "rating"
    BATCH, STAMP, CONTENT, ROWS, SETTINGS = "batch", "stamp", "content", "rows", "settings"
    TYPES, LABEL = "types", "label"
    VECTOR, MODEL_VERSION, RUN_ID, RUN_DATE = "vector", "model_version", "run_id", "run_date"
    SOURCE, REASON, RAW = "source", "reason", "raw"
    STAGE, TABLE, DELTA_VERSION, SECONDS = "stage", "table", "delta_version", "seconds"
    ROWS_IN, ROWS_OUT, ROWS_QUARANTINED = "rows_in", "rows_out", "rows_quarantined"
    ROWS_DUPLICATE, ROWS_DROPPED, ROWS_READ = "rows_duplicate", "rows_dropped", "rows_read"
    EPOCH, STEPS, LOSS = "epoch", "steps", "loss"
    REASONS, SHARE, SIMILAR = "reasons", "share", "similar_item_id"
    PROBABILITY = "probability"
    PAIR, HISTORY = "pair", "history"
    MODEL, SLICE, METRIC, K, N_USERS = "model", "slice", "metric", "k", "n_users"


class Tables:
    """Names of the tables below `lake.root`; `holdout(name)` is the same table of the fit that evaluation uses."""

    INTERACTIONS, ITEMS, USERS = "interactions", "items", "users"
    QUARANTINE, LEDGER, TRAINING, METRICS, MODELS = "quarantine", "ledger", "training", "metrics", "model_versions"
    PROCESSED, WORDS = "processed_batches", "words"
    ITEM_INDEX, USER_INDEX = "item_index", "user_index"
    ITEM_TOKENS, USER_TOKENS, SEQUENCES = "item_tokens", "user_tokens", "sequences"
    ITEM_FEATURES, USER_FEATURES, FEATURE_STATISTICS = "item_features", "user_features", "feature_statistics"
    EXAMPLES = "examples"
    PRETRAIN_TEXTS, PRETRAIN_WINDOWS = "pretrain_texts", "pretrain_windows"
    ITEM_VECTORS, USER_VECTORS = "item_vectors", "user_vectors"
    ITEM_FACTORS, USER_FACTORS = "item_factors", "user_factors"
    RECOMMENDATIONS, SIMILAR_ITEMS = "recommendations", "similar_items"
    CLICK_SCORES = "click_scores"
    RERANK_PAIRS, RERANK_LISTS, PAIR_SCORES = "rerank_pairs", "rerank_lists", "pair_scores"


HOLDOUT, FULL = "holdout", "full"
FITS = (HOLDOUT, FULL)


def table_of(name: str, fit: str) -> str:
    """Name of `name` for one fit: the full fit's tables are the published ones, the holdout fit's carry a prefix."""
    return name if fit == FULL else f"{HOLDOUT}_{name}"


# Of which columns a file of a large table keeps the least and the largest value, so that readers can skip it. Rows that
# lie by the hash of an id have none: such values would skip nothing, and cost a quarter of the time of a write.
_HASHED = (
    Tables.ITEM_TOKENS,
    Tables.USER_TOKENS,
    Tables.SEQUENCES,
    Tables.EXAMPLES,
    Tables.PRETRAIN_TEXTS,
    Tables.PRETRAIN_WINDOWS,
    Tables.ITEM_VECTORS,
    Tables.USER_VECTORS,
    Tables.ITEM_FACTORS,
    Tables.USER_FACTORS,
    Tables.RECOMMENDATIONS,
    Tables.SIMILAR_ITEMS,
    Tables.CLICK_SCORES,
)
FILE_STATISTICS = {table_of(name, fit): "" for name in _HASHED for fit in FITS} | {
    Tables.INTERACTIONS: C.EVENT_TS,
    Tables.WORDS: C.EVENT_TS,
}

# Schemas, in Spark's DDL
INTERACTIONS = (
    f"{C.USER} STRING, {C.ITEM} STRING, {C.EVENT_TS} TIMESTAMP, {C.EVENT_ORDER} BIGINT, {C.EVENT} STRING, "
    f"{C.VALUE} DOUBLE"
)
WORDS = f"{C.USER} STRING, {C.ITEM} STRING, {C.EVENT_TS} TIMESTAMP, {C.TEXT} STRING"  # what users wrote
QUARANTINE = f"{C.SOURCE} STRING, {C.REASON} STRING, {C.RAW} STRING, {C.RUN_ID} STRING"
LEDGER = (
    f"{C.RUN_ID} STRING, {C.STAGE} STRING, `{C.TABLE}` STRING, {C.ROWS_IN} BIGINT, {C.ROWS_OUT} BIGINT, "
    f"{C.ROWS_QUARANTINED} BIGINT, {C.ROWS_DUPLICATE} BIGINT, {C.ROWS_DROPPED} BIGINT, {C.DELTA_VERSION} BIGINT, "
    f"{C.SECONDS} DOUBLE"
)
TRAINING = (
    f"{C.RUN_ID} STRING, {C.MODEL_VERSION} STRING, {C.EPOCH} INT, {C.RANK} INT, {C.ROWS_READ} BIGINT, "
    f"{C.STEPS} BIGINT, {C.LOSS} DOUBLE, {C.SECONDS} DOUBLE"
)
MODELS = f"fit STRING, {C.MODEL_VERSION} STRING, {C.RUN_ID} STRING, path STRING, epochs INT, created_at TIMESTAMP"
ITEM_INDEX = f"{C.ITEM} STRING, {C.ITEM_IDX} INT"
USER_INDEX = f"{C.USER} STRING, {C.USER_IDX} INT"
# What a stage has worked off, so that the same input is not taken twice: a file or a Delta version each (ingest), or
# the inputs of a table (tokenize). stamp: size and time, or versions; content: hash of the rows, whatever their order.
PROCESSED = (
    f"{C.STAGE} STRING, {C.SOURCE} STRING, {C.BATCH} STRING, {C.STAMP} STRING, {C.CONTENT} STRING, `{C.ROWS}` BIGINT, "
    f"{C.SETTINGS} STRING, {C.TYPES} STRING, {C.RUN_ID} STRING"
)
# One row an item or user. No text: n_tokens and length 0, input_ids empty. Else input_ids has `length` entries, the
# first n_tokens real, the rest the tokenizer's padding. tokenizer: fingerprint of what made the row.
TOKENS = (
    f"{C.IDX} INT, {C.ID} STRING, {C.CONTENT_HASH} STRING, {C.N_TOKENS} INT, {C.LENGTH} INT, {C.INPUT_IDS} ARRAY<INT>, "
    f"{C.TOKENIZER} STRING"
)
# One row a window of a user's history, oldest event first; all lists have text.sequence_length + 1 entries, padded
# with 0 on the left. window 0 is the newest. The first entry is context only (0 where the history begins); each other
# entry that is not 0 is a target, and each event is a target exactly once. event_ts: epoch seconds. No column weight
# where every event counts alike; a column rating ARRAY<FLOAT>, NaN where an event has none, where ratings are learned.
SEQUENCES = (
    f"{C.USER_IDX} INT, `{C.WINDOW}` INT, {C.ITEM_IDX} ARRAY<INT>, {C.EVENT_TS} ARRAY<BIGINT>, {C.WEIGHT} ARRAY<FLOAT>"
)
# Labelled pairs for the click and rating objectives; event_ts: epoch seconds
EXAMPLES = (
    f"{C.USER_IDX} INT, {C.ITEM_IDX} INT, {C.EVENT_TS} BIGINT, {C.LABEL} FLOAT, {C.VALUE} DOUBLE, {C.WEIGHT} FLOAT"
)
# What the numbers of item_features and user_features were made with, one row an attribute
FEATURE_STATISTICS = (
    "entity STRING, attribute STRING, n BIGINT, mean DOUBLE, std DOUBLE, smallest DOUBLE, largest DOUBLE, "
    "median DOUBLE, log_mean DOUBLE, log_std DOUBLE, categories ARRAY<STRING>"
)
UNVERSIONED_VECTORS = f"{C.ID} STRING, {C.VECTOR} ARRAY<FLOAT>"
VECTORS = f"{UNVERSIONED_VECTORS}, {C.MODEL_VERSION} STRING"
RECOMMENDATIONS = (
    f"{C.RUN_DATE} DATE, {C.USER} STRING, {C.RANK} INT, {C.ITEM} STRING, {C.SCORE} FLOAT, {C.MODEL_VERSION} STRING, "
    # model, or popular: the user is unknown to the model, the score is the item's number of events
    f"{C.SOURCE} STRING, {C.REASONS} ARRAY<STRUCT<{C.ITEM}: STRING, {C.SHARE}: FLOAT>>"
)
SIMILAR_ITEMS = (
    f"{C.RUN_DATE} DATE, {C.ITEM} STRING, {C.RANK} INT, {C.SIMILAR} STRING, {C.SCORE} FLOAT, {C.MODEL_VERSION} STRING"
)
METRICS = (
    f"{C.RUN_ID} STRING, {C.MODEL} STRING, {C.PROTOCOL} STRING, {C.SLICE} STRING, {C.METRIC} STRING, {C.K} INT, "
    f"{C.VALUE} DOUBLE, {C.N_USERS} BIGINT"
)
