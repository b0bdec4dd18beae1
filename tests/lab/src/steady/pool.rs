//! Whom the mix does something to.

use std::fs;
use std::sync::Mutex;

use anyhow::Result;

use super::{lock, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A host task that mostly sleeps.
    Light,
    /// A host task that is mostly busy.
    Heavy,
    /// A vCPU of a guest.
    Vcpu,
    /// The main thread of a VMM.
    Vmm,
}

/// A thread that there is, of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub pid: u32,
    pub tid: u32,
    pub sort: Sort,
}

impl Task {
    /// Whether it has ended, seen or unseen by its parent.
    pub fn is_gone(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.tid)).unwrap_or_default();
        // The state follows a name in parentheses that may hold anything.
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_none_or(|state| matches!(state, 'Z' | 'X'))
    }

    /// What came of something that was done to it: nothing, if it has gone meanwhile.
    pub fn outcome(self, result: Result<()>) -> Result<Outcome> {
        match result {
            Ok(()) => Ok(Outcome::Done),
            Err(_) if self.is_gone() => Ok(Outcome::Refused),
            Err(error) => Err(error),
        }
    }
}

#[derive(Default)]
pub struct Pool(Mutex<Vec<Task>>);

impl Pool {
    pub fn add(&self, tasks: impl IntoIterator<Item = Task>) {
        lock(&self.0).extend(tasks);
    }

    /// When it returns, nothing is being done to the process any more.
    pub fn remove(&self, pid: u32) {
        lock(&self.0).retain(|task| task.pid != pid);
    }

    /// Does something to one of those that are `fit`; meanwhile it stays in the pool.
    pub fn with(
        &self,
        whom: u32,
        fit: impl Fn(&Task) -> bool,
        act: impl FnOnce(Task) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let tasks = lock(&self.0);
        let fit: Vec<_> = tasks.iter().copied().filter(fit).collect();
        match fit.get(whom as usize % fit.len().max(1)) {
            Some(task) => act(*task),
            None => Ok(Outcome::Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_that_has_ended_is_gone_before_its_parent_looks() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        let task = Task {
            pid,
            tid: pid,
            sort: Sort::Light,
        };
        while !task.is_gone() {
            thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(task.is_gone());
        let own = std::process::id();
        assert!(!Task {
            pid: own,
            tid: own,
            ..task
        }
        .is_gone());
    }

    #[test]
    fn those_that_fit_are_picked_and_those_that_went_are_not() {
        let pool = Pool::default();
        let task = |pid, sort| Task {
            pid,
            tid: pid,
            sort,
        };
        pool.add([
            task(1, Sort::Light),
            task(2, Sort::Vcpu),
            task(3, Sort::Light),
        ]);
        let pick = |whom| {
            let mut picked = None;
            pool.with(
                whom,
                |task| task.sort == Sort::Light,
                |task| {
                    picked = Some(task.pid);
                    Ok(Outcome::Done)
                },
            )
            .unwrap();
            picked
        };
        assert_eq!([pick(0), pick(1), pick(2)], [Some(1), Some(3), Some(1)]);
        pool.remove(1);
        assert_eq!(pick(0), Some(3));
        pool.remove(3);
        assert_eq!(pick(7), None);
    }
}
