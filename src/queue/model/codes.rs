//! The codes of failed jobs and attempts: one closed list. Kinds of an embedder have words of their own.
//!
//! docs/troubleshooting.md has an entry for each; a test compares.

/// A closed list of stable words, as an enum.
macro_rules! codes {
    ($(#[$of_all:meta])* $Codes:ident { $($(#[$doc:meta])* $name:ident = $word:literal;)* }) => {
        $(#[$of_all])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Codes { $($(#[$doc])* $name,)* }

        impl $Codes {
            /// Every code.
            pub const ALL: &'static [$Codes] = &[$($Codes::$name,)*];

            /// The stable word, in rows and documents.
            pub fn as_str(self) -> &'static str {
                match self { $($Codes::$name => $word,)* }
            }
        }

        impl std::fmt::Display for $Codes {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use codes;

codes! {
    /// What the `code` of a job's error can be, where slowlane's own kinds and workers say it.
    ErrorCode {
        /// The server left out all that the job asked for.
        AllSkipped = "all_skipped";
        /// Work of an embedder began a batch or a commit within a transaction of its own.
        AlreadyInTransaction = "already_in_transaction";
        /// A batch took too long, and couldn't be made smaller.
        BatchTimeout = "batch_timeout";
        /// Somebody at the server cancelled the statement.
        CancelledByServer = "cancelled_by_server";
        /// The work says that it was cancelled, and nobody asked it to.
        CancelledByWork = "cancelled_by_work";
        /// Whether the transaction was committed isn't known yet.
        CommitUnknown = "commit_unknown";
        /// Work of an embedder went on after the commit that was to end it.
        CommittedTwice = "committed_twice";
        /// The connection to the target broke.
        ConnectionLost = "connection_lost";
        /// A compressed upload is larger than it may be.
        DecodedTooLarge = "decoded_too_large";
        /// A column is named twice.
        DuplicateColumns = "duplicate_columns";
        /// An expression of a backfill is more than one.
        ExpressionNotAllowed = "expression_not_allowed";
        /// The upload isn't in the format that the job names.
        FormatMismatch = "format_mismatch";
        /// The table makes the column's values itself.
        GeneratedColumn = "generated_column";
        /// The guard's query failed.
        GuardFailed = "guard_failed";
        /// The guard's query isn't one that answers yes or no.
        GuardNotAllowed = "guard_not_allowed";
        /// The file ends in the middle of a row.
        IncompleteFile = "incomplete_file";
        /// Another index has the name.
        IndexExists = "index_exists";
        /// A constraint or another index needs the index.
        IndexNeeded = "index_needed";
        /// There is no index of the name.
        IndexNotFound = "index_not_found";
        /// A failure of ours.
        Internal = "internal";
        /// The worker died or shut down, and the kind may not be repeated.
        Interrupted = "interrupted";
        /// The kind refuses its arguments.
        InvalidArgs = "invalid_args";
        /// A checkpoint can't be stored, or not be read.
        InvalidCheckpoint = "invalid_checkpoint";
        /// What the work returned has no JSON form.
        InvalidOutput = "invalid_output";
        /// A parameter doesn't fit its type.
        InvalidParameter = "invalid_parameter";
        /// A row of an upload can't be stored.
        InvalidRow = "invalid_row";
        /// A backfill would change its own key.
        KeyColumn = "key_column";
        /// The result is larger than its limit.
        LimitExceeded = "limit_exceeded";
        /// A lock wasn't to be had in time.
        LockTimeout = "lock_timeout";
        /// A CSV file has no header line.
        NoHeader = "no_header";
        /// The table has no primary key, and the job names no key.
        NoKey = "no_key";
        /// No index fits the key.
        NoKeyIndex = "no_key_index";
        /// The transaction that was to be committed wasn't open.
        NoTransaction = "no_transaction";
        /// A unique index is missing.
        NoUniqueIndex = "no_unique_index";
        /// The relation is no materialized view.
        NotAMaterializedView = "not_a_materialized_view";
        /// The server or the table can't do it.
        NotSupported = "not_supported";
        /// A column of the key may be NULL.
        NullableKey = "nullable_key";
        /// Whether the work took effect can't be known.
        OutcomeUnknown = "outcome_unknown";
        /// The work panicked.
        Panic = "panic";
        /// There are more or fewer values than parameters.
        ParameterCount = "parameter_count";
        /// The target's role may not do it.
        PermissionDenied = "permission_denied";
        /// It was interrupted too often.
        Poison = "poison";
        /// The queue's database couldn't be asked.
        QueueUnavailable = "queue_unavailable";
        /// The transaction, the role or the server only reads.
        ReadOnly = "read_only";
        /// A standby stopped the work, so that it could go on with what its primary sends.
        RecoveryConflict = "recovery_conflict";
        /// The store of results is full.
        ResultStoreFull = "result_store_full";
        /// The table has row-level security.
        RowLevelSecurity = "row_level_security";
        /// A row of an upload is larger than it may be.
        RowTooLarge = "row_too_large";
        /// The server refuses the statement.
        SqlError = "sql_error";
        /// The kind doesn't run statements like this.
        StatementNotAllowed = "statement_not_allowed";
        /// The saved statement was changed while a backfill of it was under way.
        StatementChanged = "statement_changed";
        /// The target runs saved statements only.
        StatementsOnly = "statements_only";
        /// Another backfill works on the table.
        TableBusy = "table_busy";
        /// The table changed since the backfill began.
        TableChanged = "table_changed";
        /// There is no such table, or it isn't one.
        TableNotFound = "table_not_found";
        /// The target can't be reached.
        TargetUnavailable = "target_unavailable";
        /// The role may not make temporary tables.
        TempNotAllowed = "temp_not_allowed";
        /// The attempt was over its time.
        Timeout = "timeout";
        /// A row or a header has more columns than a table can have.
        TooManyColumns = "too_many_columns";
        /// More rows were refused than the job allows.
        TooManyRejects = "too_many_rejects";
        /// The transaction was open for longer than the server lets it be.
        TransactionTimeout = "transaction_timeout";
        /// There is no such collation.
        UnknownCollation = "unknown_collation";
        /// The table has no such columns.
        UnknownColumns = "unknown_columns";
        /// The process that claimed it doesn't know the kind.
        UnknownKind = "unknown_kind";
        /// There is no such operator class.
        UnknownOpclass = "unknown_opclass";
        /// The process that claimed it has no saved statement of the name.
        UnknownStatement = "unknown_statement";
        /// The process that claimed it doesn't know the target.
        UnknownTarget = "unknown_target";
        /// The target's server doesn't know the job's time zone.
        UnknownTimeZone = "unknown_time_zone";
        /// The upload isn't there any more.
        UploadGone = "upload_gone";
        /// The upload can't be decoded.
        UploadUnreadable = "upload_unreadable";
        /// A value is larger than a result can hold.
        ValueTooLarge = "value_too_large";
        /// There is no such view.
        ViewNotFound = "view_not_found";
        /// The view was never filled.
        ViewNotPopulated = "view_not_populated";
    }
}

impl AsRef<str> for ErrorCode {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<ErrorCode> for String {
    fn from(code: ErrorCode) -> String {
        code.as_str().to_owned()
    }
}

impl PartialEq<ErrorCode> for String {
    fn eq(&self, code: &ErrorCode) -> bool {
        self == code.as_str()
    }
}
