//! SQLite's findings on a restored database that are reported but do not fail the restore.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use engine::restore::{Check, IntegrityCheck, OnComplaint};
use engine::source::sqlite::Checked;
use protocol::config::OnCheckFailed;
use protocol::names::{TERMINATION_MESSAGE_BYTES, TERMINATION_MESSAGE_FILE};
use protocol::verify::StartupNotes;

use crate::args::Integrity;

/// Limit on the length of a finding, in characters.
const FINDING_MAX: usize = 400;

/// Returns the check of a manual restore. A failed check is an error when a depth was requested,
/// else only a warning.
pub(super) fn by_hand(wanted: Option<Integrity>) -> Check {
    let on_complaint = match wanted {
        Some(_) => OnComplaint::Refuse,
        None => OnComplaint::Tell,
    };
    Check {
        depth: depth(wanted),
        on_complaint,
    }
}

/// Returns the check of an unattended restore.
pub fn unattended(wanted: Option<Integrity>, policy: OnCheckFailed) -> Check {
    let on_complaint = match policy {
        OnCheckFailed::Start => OnComplaint::Tell,
        OnCheckFailed::Block => OnComplaint::Refuse,
    };
    Check {
        depth: depth(wanted),
        on_complaint,
    }
}

fn depth(wanted: Option<Integrity>) -> IntegrityCheck {
    match wanted {
        Some(Integrity::None) => IntegrityCheck::None,
        Some(Integrity::Full) => IntegrityCheck::Full,
        Some(Integrity::Quick) | None => IntegrityCheck::Quick,
    }
}

/// Logs SQLite's findings in a restored database, and the parts that SQLite could not check.
pub fn warn(database: &Path, checked: &Checked) {
    let database = database.display();
    if let Some(complaint) = &checked.complaint {
        tracing::warn!(
            %database,
            "SQLite complains about the restored database: {complaint}; every checksum holds and every \
             page is there, so the database itself is so, not the backup, and it is given back; \
             --integrity-check none leaves this check out"
        );
    }
    for reason in &checked.not_checked {
        tracing::warn!(
            %database,
            "SQLite could not check the restored database: {reason}; every checksum holds and every page \
             is there, and the application may have what is missing here"
        );
    }
}

/// Adds the findings of one database to the notes.
pub(super) fn add(notes: &mut StartupNotes, database: &Path, checked: &Checked) {
    let database = database.display();
    let told = |finding: &String| {
        let text = format!("{database}: {finding}");
        text.chars().take(FINDING_MAX).collect::<String>()
    };
    notes.complaints.extend(checked.complaint.iter().map(told));
    notes
        .not_checked
        .extend(checked.not_checked.iter().map(told));
}

/// Writes a text to the termination message, for `kubectl describe` and the operator.
pub(super) fn leave(message: &str) {
    let file = File::options()
        .write(true)
        .truncate(true)
        .open(TERMINATION_MESSAGE_FILE);
    // Outside a container this file does not exist.
    if let Ok(mut file) = file {
        let _written = file.write_all(message.as_bytes());
    }
}

/// Returns the notes as a termination message; empty without notes.
pub(super) fn fitted(notes: &StartupNotes) -> String {
    let mut notes = notes.clone();
    loop {
        if notes == StartupNotes::default() {
            return String::new();
        }
        let text = serde_json::to_string(&notes).expect("notes have string keys");
        if text.len() <= TERMINATION_MESSAGE_BYTES {
            return text;
        }
        if notes.not_checked.pop().is_none() {
            notes.complaints.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit_a_termination_message_and_complaints_stay_longest() {
        let finding = "é".repeat(FINDING_MAX);
        let mut notes = StartupNotes {
            complaints: vec![finding.clone(); 3],
            not_checked: vec![finding; 100],
        };
        let text = fitted(&notes);
        assert!(text.len() <= TERMINATION_MESSAGE_BYTES);
        let back: StartupNotes = serde_json::from_str(&text).unwrap();
        assert_eq!(back.complaints.len(), 3);
        notes.complaints = vec![notes.complaints[0].clone(); 100];
        assert!(fitted(&notes).len() <= TERMINATION_MESSAGE_BYTES);
        assert_eq!(fitted(&StartupNotes::default()), "");
    }
}
