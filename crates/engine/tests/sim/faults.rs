//! Faults of clocks, disks and machines, and faults at the moment of a take-over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::machine::Trouble;
use super::world::{WORLD, World};

const DAY_MS: i64 = 86_400_000;

impl World {
    /// Moves the clock of a machine or of a store, by minutes or by days.
    pub(super) fn jump(&mut self) {
        let most = [600_000, 40 * DAY_MS][self.chance.below(2) as usize];
        let jump = self.chance.below(most as u64) as i64 - most / 2;
        if self.stores_jump {
            let server = self.chance.pick(&self.servers).expect("there is a store");
            server.off_ms.fetch_add(jump, Ordering::Relaxed);
            let line = format!("store {}: clock {jump:+} ms", server.index);
            self.log.note(WORLD, line);
        } else if let Some(index) = self.some_process() {
            let clock = &self.alive[index].machine.clock;
            clock.off_ms.fetch_add(jump, Ordering::Relaxed);
            self.note(&format!("clock {jump:+} ms"), index);
        }
    }

    /// Makes calls of a disk fail for a while.
    pub(super) fn disk_trouble(&mut self) {
        if let Some(index) = self.some_process() {
            let (after, count) = (self.chance.below(20), 1 + self.chance.below(12));
            let trouble = match self.chance.one_in(2) {
                true => Trouble::Full(count),
                false => Trouble::Broken(count),
            };
            self.alive[index].machine.disk.trouble(after, trouble);
            self.note(&format!("after {after} calls {trouble:?}"), index);
        }
    }

    /// Ends a process in the middle of its disk calls, and starts it again.
    pub(super) async fn crash(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let after = self.chance.below(12);
        self.note(&format!("ends after {after} calls"), index);
        self.alive[index].place.app.lock().unwrap().is_busy = true;
        let disk = Arc::clone(&self.alive[index].machine.disk);
        disk.trouble(after, Trouble::Crash);
        for _ in 0..20 {
            self.log.pause(WORLD, 1000).await;
            if self.alive[index].is_over() {
                break;
            }
        }
        let process = self.alive.remove(index);
        let (place, state) = (Arc::clone(&process.place), process.state);
        self.kill(process).await;
        disk.heal();
        self.start(&place, state);
    }

    /// Supersedes a writer that begins with a snapshot while that snapshot is being stored.
    pub(super) async fn late_copy(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let until = self.log.now_ms() + 20_000;
        for server in &self.servers {
            server.late_until_ms.store(until, Ordering::Relaxed);
        }
        self.note("the next one's copy is late", index);
        let place = Arc::clone(&self.alive[index].place);
        let state = self.homes.len() + 1;
        self.start(&place, state);
        let wait = 5_000 + self.chance.below(15_000);
        self.log.pause(WORLD, wait).await;
        self.new_node().await;
    }
}
