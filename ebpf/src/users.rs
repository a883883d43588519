//! How much each user may ask for, so that one who asks for everything takes nothing from the others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Connections of one user.
const CONNECTIONS: usize = 64;
/// Requests that a user may send at once, and how many a second after that. A request is a pass over all processes, a
/// fraction of a millisecond on a machine with hundreds of them.
const BURST: f64 = 500.0;
const RATE: f64 = 250.0;

/// What a request for an id is given back, which is none of that: a restart makes two for each thread.
pub const CHEAP: f64 = 0.8;
/// What a millisecond of one's turns costs: who has nothing but turns has them a twentieth of the time.
const MILLISECOND: f64 = RATE / 1000.0 * 20.0;

#[derive(Default)]
pub struct Users(HashMap<u32, Account>);

struct Account {
    connections: usize,
    credit: f64,
    since: Instant,
}

impl Users {
    /// Counts a connection; `false` when the user has too many.
    pub fn connect(&mut self, uid: u32, now: Instant) -> bool {
        let account = self.0.entry(uid).or_insert(Account { connections: 0, credit: BURST, since: now });
        if account.connections >= CONNECTIONS {
            return false;
        }
        account.connections += 1;
        true
    }

    /// Forgets a connection, and with the last one a user whose credit is whole again.
    pub fn disconnect(&mut self, uid: u32, now: Instant) {
        if let Some(account) = self.0.get_mut(&uid) {
            account.connections -= 1;
        }
        self.0.retain(|_, account| {
            account.refill(now);
            account.connections > 0 || account.credit < BURST
        });
    }

    /// Takes a request's price; when there is not enough, how long until there is.
    pub fn spend(&mut self, uid: u32, now: Instant) -> Result<(), Duration> {
        let Some(account) = self.0.get_mut(&uid) else { return Ok(()) };
        account.refill(now);
        if account.credit < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - account.credit) / RATE));
        }
        account.credit -= 1.0;
        Ok(())
    }

    pub fn give_back(&mut self, uid: u32, credit: f64) {
        if let Some(account) = self.0.get_mut(&uid) {
            account.credit += credit;
        }
    }

    /// Takes the price of a turn, which may be more than there is.
    pub fn charge(&mut self, uid: u32, time: Duration) {
        self.give_back(uid, -MILLISECOND * 1000.0 * time.as_secs_f64());
    }
}

impl Account {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.credit = (self.credit + passed * RATE).min(BURST);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_who_floods_waits_and_the_others_do_not() {
        let (mut users, now) = (Users::default(), Instant::now());
        assert!(users.connect(1, now) && users.connect(2, now));
        let spent = (0..10_000).take_while(|_| users.spend(1, now).is_ok()).count();
        assert_eq!(spent, BURST as usize);
        assert!(users.spend(2, now).is_ok());
        let wait = users.spend(1, now).unwrap_err();
        assert!(users.spend(1, now + wait + Duration::from_micros(1)).is_ok());
    }

    #[test]
    fn who_has_nothing_but_turns_has_them_a_twentieth_of_the_time() {
        let (mut users, mut now) = (Users::default(), Instant::now());
        assert!(users.connect(1, now));
        let (turn, begun) = (Duration::from_millis(50), now);
        let mut had = Duration::ZERO;
        while now < begun + Duration::from_secs(100) {
            match users.spend(1, now) {
                Ok(()) => {
                    users.charge(1, turn);
                    (now, had) = (now + turn, had + turn);
                }
                Err(wait) => now += wait,
            }
        }
        assert!((4..=6).contains(&had.as_secs()), "{had:?}");
    }

    #[test]
    fn coming_back_does_not_renew_the_credit() {
        let (mut users, now) = (Users::default(), Instant::now());
        assert!(users.connect(1, now));
        while users.spend(1, now).is_ok() {}
        users.disconnect(1, now);
        assert!(users.connect(1, now));
        assert!(users.spend(1, now).is_err());
    }

    #[test]
    fn connections_are_counted_by_user() {
        let (mut users, now) = (Users::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| users.connect(1, now)).count(), CONNECTIONS);
        assert!(users.connect(2, now));
        users.disconnect(1, now);
        assert!(users.connect(1, now) && !users.connect(1, now));
    }
}
