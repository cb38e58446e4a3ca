//! How long each transfer may take, so that the whole demo stays within its time on any machine.

use std::time::{Duration, Instant};

/// Nothing of the demo takes longer than this, whatever hangs.
const WHOLE: Duration = Duration::from_secs(56);
/// What is planned for. The rest is for rows that take longer than they should.
const PLANNED: Duration = Duration::from_secs(48);
/// Long enough for TCP to have found its pace a hundred times over.
const WANTED: Duration = Duration::from_millis(1_200);
/// Less than this measures how connections begin.
const LEAST: Duration = Duration::from_millis(150);
/// What a row takes beside its transfers until one has been seen: namespaces, a link, its end.
const FIRST_GUESS: Duration = Duration::from_millis(500);
/// What a row may take beyond its plan before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(8);

/// The time there is, and what has been learnt about spending it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    started: Instant,
    wanted: Duration,
    overhead: Duration,
}

/// What one row may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// For each transfer.
    pub(crate) transfer: Duration,
    /// After which the row is ended.
    pub(crate) limit: Duration,
}

impl Budget {
    /// Starts now; `wanted` replaces the usual time of a transfer.
    pub(crate) fn new(now: Instant, wanted: Option<Duration>) -> Self {
        Self { started: now, wanted: wanted.unwrap_or(WANTED), overhead: FIRST_GUESS }
    }

    /// What the next row may take, with `rows` still to come (it included), of `transfers` each;
    /// `None` where there is no time left for it.
    pub(crate) fn share(&self, now: Instant, rows: u32, transfers: u32) -> Option<Share> {
        let spent = now.saturating_duration_since(self.started);
        let (rows, transfers) = (rows.max(1), transfers.max(1));
        let each = PLANNED.saturating_sub(spent) / rows;
        let least = LEAST.min(self.wanted);
        let transfer = (each.saturating_sub(self.overhead) / transfers).min(self.wanted);
        let transfer = transfer.max(least);
        let planned = transfer * transfers + self.overhead;
        let left = WHOLE.saturating_sub(spent);
        (planned <= left).then(|| Share { transfer, limit: (planned + PATIENCE).min(left) })
    }

    /// Learns from a row that took `elapsed` with transfers of that length.
    pub(crate) fn learn(&mut self, elapsed: Duration, share: Share, transfers: u32) {
        if elapsed >= share.limit {
            // Hanging is no news about rows that do not hang.
            return;
        }
        let overhead = elapsed.saturating_sub(share.transfer * transfers);
        // Half of the news: one slow row is no reason to hurry for all the others.
        self.overhead = (self.overhead + overhead) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: u32 = 12;

    /// The time that all rows take where each takes `row` of its share; the shares.
    fn play(row: impl Fn(Share) -> Duration) -> (Duration, Vec<Option<Share>>) {
        let started = Instant::now();
        let (mut now, mut budget) = (started, Budget::new(started, None));
        let mut shares = Vec::new();
        for done in 0..ROWS {
            let share = budget.share(now, ROWS - done, 2);
            if let Some(share) = share {
                let elapsed = row(share).min(share.limit);
                budget.learn(elapsed, share, 2);
                now += elapsed;
            }
            shares.push(share);
        }
        (now - started, shares)
    }

    #[test]
    fn an_ordinary_machine_gives_each_transfer_its_time() {
        let (whole, shares) = play(|share| share.transfer * 2 + Duration::from_millis(300));
        assert!(shares.iter().all(|share| share.is_some_and(|share| share.transfer == WANTED)));
        assert!(whole < Duration::from_secs(35), "{whole:?}");
    }

    #[test]
    fn a_slow_machine_gets_shorter_transfers_and_all_rows() {
        let (whole, shares) = play(|share| share.transfer * 2 + Duration::from_secs(3));
        assert!(shares.iter().all(Option::is_some));
        assert!(shares[ROWS as usize - 1].unwrap().transfer < WANTED);
        assert!(whole <= WHOLE, "{whole:?}");
    }

    #[test]
    fn rows_that_hang_do_not_keep_the_demo() {
        let (whole, shares) = play(|share| share.limit);
        assert!(whole <= WHOLE, "{whole:?}");
        assert!(shares[0].is_some());
        assert_eq!(shares[ROWS as usize - 1], None);
    }

    #[test]
    fn what_is_asked_for_is_given_where_there_is_time() {
        let now = Instant::now();
        let asked = Duration::from_millis(40);
        let share = Budget::new(now, Some(asked)).share(now, 1, 2).unwrap();
        assert_eq!(share.transfer, asked);
        assert!(share.limit > asked * 2);
        let much = Budget::new(now, Some(Duration::from_secs(600))).share(now, 1, 2).unwrap();
        assert!(much.transfer * 2 < WHOLE);
    }
}
