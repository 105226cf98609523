//! Worlds as operators have them, drawn at random: members with several addresses and clients, foreign hosts that open
//! images, addresses that move, PGs that answer late or never, an Incus that hangs, and operators who remove, add, fence,
//! release and evacuate at any time. What is true there is the world's own ([`state`]); the guardian sees of it what can
//! be read ([`perform`]); and after each step every client and image is looked at ([`checks`]).
//!
//! A history is a list of events ([`events`]). One that breaks a guarantee is made as short as it can be and printed with
//! its log. `GUARDIAN_WORLDS` says how many are drawn, `GUARDIAN_SEED` where to begin.

mod checks;
mod drawn;
mod events;
mod facets;
mod found;
mod late;
#[cfg(feature = "mutants")]
mod mutants;
mod pace;
mod perform;
mod state;
mod themes;
mod volumes;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

use drawn::Shape;
use events::Event;
use state::World;

/// A world and what happens in it.
#[derive(Debug, Clone)]
struct History {
    shape: Shape,
    events: Vec<Event>,
}

impl History {
    /// These events, in a world of three members with nothing special.
    fn of(events: &[Event]) -> Self {
        Self::shaped(|_| {}, events)
    }

    /// These events, in a world of three members with this.
    fn shaped(special: impl FnOnce(&mut Shape), events: &[Event]) -> Self {
        let mut shape = Shape {
            members: 3,
            data: drawn::DataPool::WithTheImages,
            second_ips: false,
            second_cluster: false,
            wrong_cluster: false,
            said: false,
            hyperconverged: false,
            floating: false,
            active: false,
            profiles: false,
        };
        special(&mut shape);
        Self { shape, events: events.to_vec() }
    }

    #[track_caller]
    fn holds(&self) {
        if let Err((broken, log)) = self.run() {
            panic!("{broken}\n{log:#?}");
        }
    }

    fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut shape = Shape::draw(&mut rng);
        let themes = [Event::theme(&mut rng, &mut shape), Event::theme(&mut rng, &mut shape)];
        // One theme undisturbed, or none.
        let first = if rng.bool() { themes[0].clone() } else { Vec::new() };
        let mut themes = themes.map(|theme| theme.into_iter().cycle());
        let mut draw = || match rng.usize(..4) {
            theme @ 0..2 => themes[theme].next().unwrap(),
            _ => Event::draw(&mut rng),
        };
        let events = first.into_iter().chain(std::iter::repeat_with(&mut draw)).take(40).collect::<Vec<_>>();
        let length = Rng::with_seed(seed).usize(5..40);
        Self { shape, events: events[..length].to_vec() }
    }

    /// What it breaks, and what happened.
    fn run(&self) -> Result<(), (String, Vec<String>)> {
        let mut world = World::new(self.shape);
        world.warms_up();
        for event in &self.events {
            world.happens(*event);
            if let Some(broken) = world.broken {
                return Err((broken, world.log));
            }
        }
        world.calms_down();
        let mut unsettled = None;
        for second in 0..CALM {
            world.happens(Event::Pass(1));
            if let Some(broken) = world.broken {
                return Err((broken, world.log));
            }
            unsettled = world.unsettled();
            if second >= 10 && unsettled.is_none() {
                return Ok(());
            }
        }
        match unsettled {
            Some(why) => Err((format!("it never settles: {why}"), world.log)),
            None => Ok(()),
        }
    }

    /// The same kind of break with as little as possible.
    fn shortest(mut self, broken: &str) -> Self {
        let kind = |text: &str| {
            text.split_whitespace()
                .find(|word| word.starts_with("INV") || ["never", "silent:", "pace:"].contains(word))
                .map(str::to_owned)
        };
        let breaks =
            |history: &Self| history.run().err().is_some_and(|(text, _)| kind(&text) == kind(broken));
        let mut size = self.events.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.events.len() {
                let mut without = self.clone();
                without.events.drain(at..(at + size).min(self.events.len()));
                if breaks(&without) {
                    self = without;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        self
    }
}

/// So long is waited until a calm world has settled, in seconds.
const CALM: u32 = 120;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn drawn_holds(seed: u64) {
    let history = History::draw(seed);
    let ran = std::panic::catch_unwind(|| history.run());
    let ran = ran.unwrap_or_else(|_| panic!("seed {seed}: {history:#?}"));
    if let Err((broken, _)) = ran {
        let shortest = history.shortest(&broken);
        let (broken, log) = shortest.run().unwrap_err();
        let mut text = String::new();
        for line in &log {
            writeln!(text, "{line}").unwrap();
        }
        panic!("seed {seed}: {broken}\n{shortest:?}\n{text}");
    }
}

#[test]
fn inv1_to_inv9_hold_in_worlds_drawn_at_random() {
    let (first, worlds) = (number("GUARDIAN_SEED", 0), number("GUARDIAN_WORLDS", 300));
    let began = std::time::Instant::now();
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let draw = || {
            while let seed = next.fetch_add(1, Ordering::Relaxed)
                && seed < first + worlds
            {
                drawn_holds(seed);
            }
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(draw)).collect();
        for one in all {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    println!("{worlds} worlds in {:?}", began.elapsed());
}

/// A world in which nothing happens stays as it is.
#[test]
fn in_a_calm_world_nothing_is_fenced() {
    for seed in 0..20 {
        let mut world = World::new(Shape::draw(&mut Rng::with_seed(seed)));
        world.warms_up();
        world.happens(Event::Pass(100));
        assert_eq!(world.broken, None);
        let mut alarms = world.alarms();
        // Of a cluster with none of Incus's images one thing is said.
        assert_eq!(alarms.remove("wrong-cluster"), world.cluster_shape.wrong_cluster, "{alarms:?}");
        // Nor does an operator who excepts the pool of the data hear of anything else.
        let excepted = world.cluster_shape.data == drawn::DataPool::Excepted;
        assert_eq!(alarms.remove("pool-excepted"), excepted, "{alarms:?}");
        assert!(world.map().blocklist.entries.is_empty() && alarms.is_empty(), "{alarms:?}");
    }
}

/// The checks see what they are for: a world whose guardian is gone lets a lost member write.
#[test]
fn a_lost_member_is_fenced_and_healed() {
    let mut world = World::new(History::of(&[]).shape);
    world.warms_up();
    world.happens(Event::Lose(0));
    world.happens(Event::Pass(60));
    assert_eq!(world.broken, None, "{:#?}", world.log);
    assert!(world.guests.values().all(|guest| guest.location != "n1"), "{:#?}", world.log);
    assert!(world.clients.iter().any(|client| client.host == "n1" && client.dead && client.alive));
}
