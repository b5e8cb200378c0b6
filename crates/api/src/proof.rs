//! `spec.restoreTest` of a SqliteBackup: the schedule of restore tests, and their checks.

use protocol::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{between, rule};
use crate::target::Credentials;

/// Limit on the characters in `query`, `equals` and `database` of all checks together. The Job of a
/// restore test passes them in one string of at most 128 KiB, where a character takes up to 6
/// bytes.
pub const CHECKS_CHARACTERS: usize = 16_384;

/// Restore tests: scheduled restores into scratch space, away from the application, that prove the
/// backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreTestPolicy {
    /// Schedule as five cron fields: minute, hour, day of month, month, day of week. `H` stands for
    /// a fixed value that differs between objects, so that tests spread out. Default: `H H * * H`,
    /// once a week.
    #[schemars(length(min = 1, max = 128))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule(
            "self.matches('^[0-9A-Za-z*/,#?()-]+( +[0-9A-Za-z*/,#?()-]+){4}$')",
            "schedule must be five cron fields, such as H 3 * * *",
        ),
    ]))]
    pub schedule: String,
    /// IANA name of the schedule's time zone. Default: `Etc/UTC`.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = "^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    pub time_zone: String,
    /// Depth of the verification. `Quick`: the database opens and `quick_check` passes. `Full`
    /// (default): also, `integrity_check` and your checks pass; dangling foreign keys are only
    /// noted. `Checksum`: also, every page equals the one that the live sidecar sent.
    pub level: TestLevel,
    /// Time limit of one test, `10s` to `168h`; default `1h`. Beyond it, the result is `TimedOut`.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("10s", "168h")]))]
    pub deadline: Span,
    /// Queries whose results are checked in the restored databases. At most 32, with at most 16384
    /// characters in `query`, `equals` and `database` together.
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
    /// Query that lists the databases that the backup must hold. Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_databases: Option<ExpectDatabases>,
    /// Credentials of restore tests; read-only ones suffice. Default: the credentials of each
    /// target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Number of passed RestoreTests to keep, 0 to 100; default 3.
    #[schemars(range(min = 0, max = 100))]
    pub successful_history_limit: u32,
    /// Number of failed RestoreTests to keep, 0 to 100; default 5. The last failed one always
    /// stays.
    #[schemars(range(min = 0, max = 100))]
    pub failed_history_limit: u32,
    /// `true` stops the schedule. RestoreTests that are created by hand still run. Default:
    /// `false`.
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

/// Depth of the verification. Each level includes the levels before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TestLevel {
    /// The database opens and `quick_check` passes.
    Quick,
    /// `integrity_check` and the user's checks pass; dangling foreign keys are only noted.
    #[default]
    Full,
    /// Every page equals the one that the live sidecar sent.
    Checksum,
}

/// One query on a restored database, and the expected result. Exactly one expectation is required:
/// `min` and/or `max`, `rows`, `equals`, or `maxAge`.
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
    /// Unique name of the check in reports, 1 to 63 characters.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub name: String,
    /// Path or file name of the database to query. Default: `*`, every database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub database: Option<String>,
    /// One read-only SQL statement, up to 4096 characters; it may take 60 s.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// Smallest allowed value of the first column in the first row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest allowed value of the first column in the first row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// Exact number of rows, up to 1000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000000000))]
    pub rows: Option<u64>,
    /// Exact value of the first column in the first row, as text of up to 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
    /// Greatest allowed age of the time in the first column of the first row, `1s` to `8784h`. The
    /// age is measured at the restored point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1s", "8784h")]))]
    pub max_age: Option<Span>,
}

impl CheckSpec {
    /// The characters of this check that count towards [`CHECKS_CHARACTERS`].
    pub fn characters(&self) -> usize {
        let long = [
            Some(&self.query),
            self.equals.as_ref(),
            self.database.as_ref(),
        ];
        long.iter().flatten().map(|text| text.chars().count()).sum()
    }
}

/// Query that lists the databases that the backup must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpectDatabases {
    /// Path or file name of the database to query.
    #[schemars(length(min = 1, max = 512))]
    pub database: String,
    /// One SQL statement whose first column lists file names.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}
