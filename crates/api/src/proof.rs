//! `spec.restoreTest` of a SqliteBackup: when restores are tried, and what they have to show.

use protocol::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{between, rule};
use crate::target::Credentials;

/// Most characters that all checks of a SqliteBackup may have together, of those texts that may be
/// long. A restore test carries them in one string of 128 KiB, in which a character takes up to six
/// bytes.
pub const CHECKS_CHARACTERS: usize = 16_384;

/// Restores that prove the backup: into scratch space, away from the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreTestPolicy {
    /// When to test, as five cron fields: minute, hour, day of month, month, day of week. `H`
    /// stands for a value that differs between objects and never changes for one, so that tests
    /// spread out.
    #[schemars(length(min = 1, max = 128))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule(
            "self.matches('^[0-9A-Za-z*/,#?()-]+( +[0-9A-Za-z*/,#?()-]+){4}$')",
            "schedule must be five cron fields, such as H 3 * * *",
        ),
    ]))]
    pub schedule: String,
    /// Time zone of the schedule, by its IANA name.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    pub time_zone: String,
    /// How deep to look. Quick: the database opens and `quick_check` passes. Full: also
    /// `integrity_check` and your checks; orphans of foreign keys are a note. Checksum: also every
    /// byte equals what the live sidecar had sent.
    pub level: TestLevel,
    /// How long a test may take before it counts as TimedOut.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("10s", "168h")]))]
    pub deadline: Span,
    /// Queries that must hold in the restored database. At most 32, with 16384 characters of
    /// query, equals and database together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = [rule(
                "self.map(c, size(c.query) + (has(c.equals) ? size(c.equals) : 0) + (has(c.database) ? size(c.database) : 0)).sum() <= 16384",
                "query, equals and database of all checks together may have 16384 characters",
            )],
        )
    )]
    pub checks: Vec<CheckSpec>,
    /// A query that lists the databases that must be in the backup. Not served yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_databases: Option<ExpectDatabases>,
    /// Credentials of tests, best read-only; left out: those of the targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// How many passed RestoreTests to keep.
    #[schemars(range(min = 0, max = 100))]
    pub successful_history_limit: u32,
    /// How many failed RestoreTests to keep. The last failed one always stays.
    #[schemars(range(min = 0, max = 100))]
    pub failed_history_limit: u32,
    /// True: schedule no tests. Those made by hand still run.
    pub suspend: bool,
}

impl Default for RestoreTestPolicy {
    fn default() -> Self {
        RestoreTestPolicy {
            schedule: "H H * * H".to_owned(),
            time_zone: "Etc/UTC".to_owned(),
            level: TestLevel::default(),
            deadline: Span::from_secs(3600),
            checks: Vec::new(),
            expect_databases: None,
            credentials: None,
            successful_history_limit: 3,
            failed_history_limit: 5,
            suspend: false,
        }
    }
}

/// How deep a restore test looks; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TestLevel {
    /// The database opens and `quick_check` passes.
    Quick,
    /// `integrity_check` and the user's checks; orphans of foreign keys are a note.
    #[default]
    Full,
    /// The whole database equals what the live sidecar had sent.
    Checksum,
}

/// One query that must hold in the restored database. Expect either min and max, or rows, or
/// equals, or maxAge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.min) || has(self.max), has(self.rows), has(self.equals), has(self.maxAge)].exists_one(x, x)",
        "exactly one expectation must be given: min and/or max, rows, equals, or maxAge",
    ),
    rule(
        "!has(self.min) || !has(self.max) || self.min <= self.max",
        "min must be at most max",
    ),
]))]
pub struct CheckSpec {
    /// Name of the check in reports; unique.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub name: String,
    /// Path or file name of the database to ask; left out or `*`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub database: Option<String>,
    /// One SQL statement. It can only read.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// The first value of the first row is at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// The first value of the first row is at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// The number of rows is exactly this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000000000))]
    pub rows: Option<u64>,
    /// The first value of the first row, as text, is exactly this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
    /// The first value of the first row is a time at most this much older than the restored point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1s", "8784h")]))]
    pub max_age: Option<Span>,
}

impl CheckSpec {
    /// How much of [`CHECKS_CHARACTERS`] it takes.
    pub fn characters(&self) -> usize {
        let long = [
            Some(&self.query),
            self.equals.as_ref(),
            self.database.as_ref(),
        ];
        long.iter().flatten().map(|text| text.chars().count()).sum()
    }
}

/// A query that lists the databases that must be in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpectDatabases {
    /// The database to ask.
    #[schemars(length(min = 1, max = 512))]
    pub database: String,
    /// One SQL statement whose first column lists file names.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}
