//! Events that meet often, in a world in which they matter.

use fastrand::Rng;

use super::drawn::Shape;
use super::events::Event;

impl Event {
    /// What meets what, more often than it would by chance: two of these in each history.
    pub(crate) fn theme(rng: &mut Rng, shape: &mut Shape) -> Vec<Self> {
        let n = rng.u8(..);
        let other = n.wrapping_add(1);
        // PGs of images.
        let (pg, next_pg) = (n & !1, (n & !1).wrapping_add(2));
        let themes: [&[Self]; 25] = [
            &[Self::Lose(n), Self::Pass(24 + n % 8), Self::TakeOver(2), Self::Pass(45)],
            // The gate is open, and nobody knows yet where the images are.
            &[Self::Fence(pg, true), Self::Pass(20 + n % 16), Self::TakeOver(2), Self::Pass(10)],
            // The gate is to be closed and nobody answers any more.
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::Reboot(n),
                Self::Lose(n),
                Self::Lose(other),
                Self::Pass(15),
                Self::TakeOver(1),
                Self::Pass(30),
            ],
            &[
                Self::Lock(n),
                Self::Lose(n / 2),
                Self::Pass(45),
                Self::Ghost(n),
                Self::Pass(10),
                Self::Reboot(n / 2),
            ],
            &[Self::Migrate(n, 12), Self::Pass(5), Self::Lose(other), Self::Pass(45), Self::TakeOver(0)],
            &[
                Self::Lose(n),
                Self::Pass(30),
                Self::AddByHand(other),
                Self::Pass(30),
                Self::Reboot(n),
                Self::Pass(20),
            ],
            &[Self::SlowPg(pg, other), Self::Lose(n), Self::Pass(45), Self::RemoveEntry(n), Self::Pass(60)],
            // Maps come all the time, and by the time it has one there are newer ones.
            &[
                Self::Churn(true),
                Self::SlowPg(pg, n % 32),
                Self::Lose(n),
                Self::Pass(45),
                Self::Pass(60),
                Self::Pass(30),
            ],
            // While a late PG is waited for, one that has answered falls silent.
            &[Self::SlowPg(pg, n % 64), Self::Lose(n), Self::Pass(35), Self::Stick(next_pg), Self::Pass(90)],
            // While a late PG is waited for the entries go, and another PG stays with the map in which they were gone.
            &[
                Self::SlowPg(pg, 40 + n % 64),
                Self::Lose(n),
                Self::Pass(45),
                Self::ClearBlocklist,
                Self::Stick(next_pg),
                Self::Pass(60),
                Self::Pass(60),
            ],
            &[
                Self::FailsAtOnce(true),
                Self::Lose(n),
                Self::Pass(45),
                Self::LookUnread(true),
                Self::Reboot(n),
                Self::Pass(30),
            ],
            // Whose a volume is cannot be read, and a foreign host uses it.
            &[
                Self::Partial(8),
                Self::Pass(n % 8),
                Self::Export(n),
                Self::Pass(5),
                Self::Lose(n),
                Self::Pass(60),
            ],
            // A name is given again while a sweep is on its way.
            &[
                Self::Lag(n % 30),
                Self::Pass(n % 7),
                Self::Anew(n),
                Self::Pass(5),
                Self::Lose(n),
                Self::Pass(45),
            ],
            &[Self::Lag(20), Self::Backup(n), Self::Lag(0), Self::Lose(n / 2), Self::Pass(45)],
            &[Self::Renumber(n), Self::Pass(n % 24), Self::Lose(n), Self::Pass(60), Self::Reboot(n)],
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::FenceAddress(n),
                Self::Pass(5),
                Self::Release(0),
                Self::Release(1),
            ],
            &[Self::Lose(n), Self::Pass(22), Self::Return(n, 14), Self::Pass(4), Self::Evacuate(n)],
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::IncusHangs(25),
                Self::RemoveEntry(n),
                Self::Pass(30),
                Self::IncusBack,
            ],
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::PowerOff(n),
                Self::TakeOver(1),
                Self::Release(0),
                Self::Pass(10),
            ],
            &[Self::Stick(n), Self::Lose(n), Self::Pass(45), Self::Unstick, Self::Pass(20), Self::Reboot(n)],
            &[Self::Lose(0), Self::Float(other), Self::TakeOver(0), Self::Pass(45), Self::Reboot(0)],
            // It moves between the last reading of interfaces and the fence.
            &[Self::Lose(0), Self::Pass(21 + n % 12), Self::Float(other), Self::Pass(45), Self::Reboot(0)],
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::Unanswered(n),
                Self::RemoveEntry(n),
                Self::Reboot(n),
                Self::Pass(20),
            ],
            &[
                Self::Lose(n),
                Self::Agent(n),
                Self::Agent(n),
                Self::Pass(45),
                Self::Return(n, 3),
                Self::Agent(n),
            ],
            &[
                Self::Lose(n),
                Self::Pass(45),
                Self::Return(n, 3),
                Self::Lose(other),
                Self::Pass(45),
                Self::Reboot(n),
            ],
        ];
        let theme = themes[rng.usize(..themes.len())].to_vec();
        // A world in which it matters, more often than not.
        if rng.bool() {
            shape.suits(&theme);
        }
        theme
    }
}
