//! What keeps something from working, for the log.

use std::time::Duration;

use tokio::time::Instant;

/// No other reason is told for so long: two that alternate would fill the log.
const PAUSE: Duration = Duration::from_secs(10);
/// The same reason is told again after so long.
const AGAIN: Duration = Duration::from_secs(600);

/// Remembers what was told, so that it is not told all the time.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    told: Option<(Instant, String)>,
}

impl Trouble {
    /// Whether `why` is to be told.
    pub(crate) fn is_news(&mut self, why: &str) -> bool {
        if let Some((at, told)) = &self.told
            && at.elapsed() < if told == why { AGAIN } else { PAUSE }
        {
            return false;
        }
        self.told = Some((Instant::now(), why.into()));
        true
    }

    /// It works again.
    pub(crate) fn over(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_told_again_after_ten_minutes_and_another_after_ten_seconds() {
        let mut trouble = Trouble::default();
        let told = ["refused", "refused", "no answer"].map(|why| trouble.is_news(why));
        assert_eq!(told, [true, false, false]);
        tokio::time::advance(PAUSE).await;
        let told = ["refused", "no answer", "refused"].map(|why| trouble.is_news(why));
        assert_eq!(told, [false, true, false]);
        tokio::time::advance(AGAIN).await;
        assert!(trouble.is_news("no answer"));
        trouble.over();
        assert!(trouble.is_news("no answer"));
    }
}
