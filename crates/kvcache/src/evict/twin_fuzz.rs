//! Every policy against a twin that keeps a list and looks at all of it for each victim: the same
//! calls must give the same victims, whatever may go.

use std::collections::BTreeSet;

use super::curve::{Curve, learn};
use super::{Class, Evict, Gdsf, Hazard, Lru, Slru, Tick, Unit, UnitId, Waiting};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Lru,
    Slru,
    Gdsf,
    Hazard,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    id: UnitId,
    unit: Unit,
    place: u64,
    n_uses: u8,
    is_last: bool,
    last_use: Tick,
    protected: bool,
    age: f64,
    wait: u64,
    until: Option<u64>,
}

fn index_of(class: Class, n_uses: u8, is_last: bool) -> usize {
    let classes = [
        Class::Interior,
        Class::BranchPoint,
        Class::TurnEnd,
        Class::OutputEnd(Waiting::Tool),
        Class::OutputEnd(Waiting::Person),
        Class::System,
    ];
    let class = classes.iter().position(|c| *c == class).unwrap();
    class * 8 + n_uses.min(3) as usize * 2 + usize::from(is_last)
}

/// The twin of all policies: what they share, and where they differ by kind.
#[derive(Debug)]
struct Twin {
    kind: Kind,
    records: Vec<Record>,
    /// (key, class, uses, whether last, last use), as they went.
    ghosts: Vec<(u64, Class, u8, bool, Tick)>,
    curves: Vec<Curve>,
    n_places: u64,
    n_victims: u64,
    n_events: usize,
    last_lesson: Tick,
    now: Tick,
    latest: (u64, Tick),
    /// Of GDSF.
    age: f64,
}

impl Twin {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            records: Vec::new(),
            ghosts: Vec::new(),
            curves: vec![Curve::new(); 48],
            n_places: 0,
            n_victims: 0,
            n_events: 0,
            last_lesson: 0,
            now: 0,
            latest: (0, 0),
            age: 0.0,
        }
    }

    fn density(unit: &Unit) -> f64 {
        unit.saved_cost / unit.bytes as f64
    }

    fn worth(&self, record: &Record, now: Tick) -> f64 {
        let Record { unit, n_uses, is_last, last_use, .. } = record;
        match self.kind {
            Kind::Lru => 0.0,
            Kind::Slru => f64::from(u8::from(record.protected)),
            Kind::Gdsf => record.age + f64::from(*n_uses + 1) * Self::density(unit),
            Kind::Hazard => {
                let curve = &self.curves[index_of(unit.class, *n_uses, *is_last)];
                curve.worth(now - last_use) * Self::density(unit)
            }
        }
    }

    /// Whether it is the oldest of its line; only the hazard policy has more than one.
    fn leads(&self, record: &Record) -> bool {
        let line = |r: &Record| {
            let octave = Self::density(&r.unit).to_bits() >> 52;
            (index_of(r.unit.class, r.n_uses, r.is_last), octave)
        };
        let is_before = |r: &&Record| r.until.is_none() && r.place < record.place;
        self.kind != Kind::Hazard
            || !self.records.iter().filter(is_before).any(|r| line(r) == line(record))
    }

    fn place(&mut self) -> u64 {
        self.n_places += 1;
        self.n_places
    }

    fn is_last(&mut self, depth: u64, now: Tick) -> bool {
        let was = std::mem::replace(&mut self.latest, (depth, now));
        was.1 != now || depth >= was.0
    }

    fn event(&mut self, now: Tick) {
        self.now = now;
        self.n_events += 1;
        if self.n_events >= 64.max((self.records.len() + self.ghosts.len()) / 8) {
            self.n_events = 0;
            for r in &self.records {
                let curve = &mut self.curves[index_of(r.unit.class, r.n_uses, r.is_last)];
                curve.watched(self.last_lesson.saturating_sub(r.last_use), now - r.last_use);
            }
            for (_, class, n_uses, is_last, last_use) in &self.ghosts {
                let curve = &mut self.curves[index_of(*class, *n_uses, *is_last)];
                curve.watched(self.last_lesson.saturating_sub(*last_use), now - last_use);
            }
            self.last_lesson = now;
            learn(&mut self.curves, 0.99);
        }
    }

    fn demote(&mut self) {
        let bytes = |records: &[Record], all: bool| -> u64 {
            records.iter().filter(|r| all || r.protected).map(|r| r.unit.bytes).sum()
        };
        while bytes(&self.records, false) as f64 > 0.5 * bytes(&self.records, true) as f64 {
            let place = self.place();
            let protected = self.records.iter_mut().filter(|r| r.protected);
            let oldest = protected.min_by_key(|r| r.place).unwrap();
            (oldest.protected, oldest.place) = (false, place);
        }
    }

    fn choose(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        loop {
            let shown = self.records.iter().filter(|r| r.until.is_none() && self.leads(r));
            let first = shown.min_by(|a, b| {
                let by_worth = self.worth(a, now).total_cmp(&self.worth(b, now));
                by_worth.then(a.place.cmp(&b.place))
            })?;
            let (id, worth) = (first.id, self.worth(first, now));
            if may(id) {
                self.age = self.age.max(worth);
                return Some(id);
            }
            let n_aside = self.records.iter().filter(|r| r.wait > 0).count() as u64;
            let place = self.place();
            let record = self.records.iter_mut().find(|r| r.id == id).unwrap();
            if self.kind == Kind::Lru {
                (record.place, record.until) = (place, Some(0));
                continue;
            }
            record.wait = (2 * record.wait + 1).min(1 + n_aside / 64);
            record.until = Some(self.n_victims + record.wait);
        }
    }
}

impl Evict for Twin {
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick) {
        self.remove(id);
        let ghost = self.ghosts.iter().position(|g| g.0 == unit.key);
        let n_uses = match (self.kind, ghost.map(|at| self.ghosts.remove(at))) {
            (Kind::Hazard, Some(ghost)) => ghost.2,
            _ => 0,
        };
        let (place, is_last) = (self.place(), self.is_last(unit.depth_tokens, now));
        let (protected, age, wait, until) = (false, self.age, 0, None);
        let last_use = now;
        let record =
            Record { id, unit, place, n_uses, is_last, last_use, protected, age, wait, until };
        self.records.push(record);
        self.event(now);
    }

    fn touch(&mut self, id: UnitId, now: Tick) {
        let Some(at) = self.records.iter().position(|r| r.id == id) else { return };
        let mut record = self.records.remove(at);
        let curve = index_of(record.unit.class, record.n_uses, record.is_last);
        let from = self.last_lesson.saturating_sub(record.last_use);
        self.curves[curve].watched(from, now - record.last_use);
        self.curves[curve].used(now - record.last_use);
        record.n_uses += 1;
        record.is_last = self.is_last(record.unit.depth_tokens, now);
        (record.place, record.age, record.last_use) = (self.place(), self.age, now);
        (record.protected, record.wait, record.until) = (self.kind == Kind::Slru, 0, None);
        self.records.push(record);
        self.demote();
        self.event(now);
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        if let Some(record) = self.records.iter_mut().find(|r| r.id == id) {
            record.unit = unit;
        }
    }

    fn remove(&mut self, id: UnitId) {
        let Some(at) = self.records.iter().position(|r| r.id == id) else { return };
        let Record { unit, n_uses, is_last, last_use, .. } = self.records.remove(at);
        self.ghosts.retain(|g| g.0 != unit.key);
        self.ghosts.push((unit.key, unit.class, n_uses, is_last, last_use));
        if self.ghosts.len() > 256.max(4 * self.records.len()) {
            let oldest =
                (0..self.ghosts.len()).min_by_key(|&k| (self.ghosts[k].4, self.ghosts[k].0));
            let (_, class, n_uses, is_last, last_use) = self.ghosts.remove(oldest.unwrap());
            let from = self.last_lesson.saturating_sub(last_use);
            let curve = &mut self.curves[index_of(class, n_uses, is_last)];
            curve.watched(from, self.now - last_use);
        }
    }

    fn missed(&mut self, key: u64, now: Tick) {
        if let Some(ghost) = self.ghosts.iter_mut().find(|g| g.0 == key) {
            let curve = &mut self.curves[index_of(ghost.1, ghost.2, ghost.3)];
            curve.watched(self.last_lesson.saturating_sub(ghost.4), now - ghost.4);
            curve.used(now - ghost.4);
            (ghost.2, ghost.4) = (ghost.2 + 1, now);
            self.event(now);
        }
    }

    fn victim(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        self.n_victims += 1;
        let n_victims = self.n_victims;
        let is_over = |until: u64| until <= n_victims;
        self.records.iter_mut().for_each(|r| r.until = r.until.filter(|&u| !is_over(u)));
        if let Some(id) = self.choose(now, may) {
            return Some(id);
        }
        if self.kind == Kind::Lru {
            return None;
        }
        self.records.iter_mut().for_each(|r| r.until = None);
        self.choose(now, may)
    }
}

/// xorshift64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

#[derive(Debug)]
enum Op {
    Insert(UnitId, Unit),
    Touch(UnitId),
    Update(UnitId, Unit),
    Remove(UnitId),
    Missed(u64),
    /// Evict, while the ids with this remainder by 4 are in use.
    Evict(u32),
    EvictAny,
    /// Evict so many in one tick, of paths of 32 ids from their ends.
    EvictEnds(u64),
    Wait(Tick),
}

fn draw(draws: &mut Draws, n_ids: u64) -> Op {
    let id = UnitId(draws.below(n_ids) as u32, draws.below(2) as u32);
    let class = match draws.below(4) {
        0 => Class::TurnEnd,
        1 => Class::OutputEnd(Waiting::Tool),
        _ => Class::Interior,
    };
    let unit = Unit {
        key: draws.below(3 * n_ids),
        bytes: 1 + draws.below(9),
        saved_cost: draws.below(50) as f64,
        depth_tokens: draws.below(20),
        class,
    };
    match draws.below(16) {
        // A slot holds one unit at a time; other generations of it are stale names.
        0..5 => Op::Insert(UnitId(id.0, 0), unit),
        5..9 => Op::Touch(id),
        9 => Op::Update(id, unit),
        10 => Op::Remove(id),
        11 => Op::Missed(unit.key),
        12 => Op::Evict(draws.below(4) as u32),
        13 => Op::EvictAny,
        14 if draws.below(8) == 0 => Op::EvictEnds(1 + draws.below(n_ids / 4)),
        _ => Op::Wait(1 << draws.below(12)),
    }
}

fn check(kind: Kind, seed: u64, n_ids: u64, n_steps: usize) {
    let mut policy: Box<dyn Evict> = match kind {
        Kind::Lru => Box::new(Lru::new()),
        Kind::Slru => Box::new(Slru::new()),
        Kind::Gdsf => Box::new(Gdsf::new()),
        Kind::Hazard => Box::new(Hazard::new()),
    };
    let mut twin = Twin::new(kind);
    let mut draws = Draws(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut now, mut n_evicted) = (0, 0);
    for step in 0..n_steps {
        let op = draw(&mut draws, n_ids);
        let n_victims = if let Op::EvictEnds(n) = op { n } else { 1 };
        for _ in 0..n_victims {
            let known = twin.records.iter().map(|r| r.id.0).collect::<BTreeSet<_>>();
            let ends = |id: UnitId| id.0 % 32 == 31 || !known.contains(&(id.0 + 1));
            let both: [&mut dyn Evict; 2] = [&mut *policy, &mut twin];
            let victims = both.map(|side| {
                match &op {
                    Op::Insert(id, unit) => side.insert(*id, *unit, now),
                    Op::Touch(id) => side.touch(*id, now),
                    Op::Update(id, unit) => side.update(*id, *unit),
                    Op::Remove(id) => side.remove(*id),
                    Op::Missed(key) => side.missed(*key, now),
                    Op::Evict(used) => return side.victim(now, &mut |id| id.0 % 4 != *used),
                    Op::EvictAny => return side.victim(now, &mut |_| true),
                    Op::EvictEnds(_) => return side.victim(now, &mut |id| ends(id)),
                    Op::Wait(_) => {}
                }
                None
            });
            assert_eq!(victims[0], victims[1], "{kind:?} seed {seed} step {step} {op:?}");
            if let Some(id) = victims[0] {
                policy.remove(id);
                twin.remove(id);
                n_evicted += 1;
            }
        }
        if let Op::Wait(ticks) = op {
            now += ticks;
        }
    }
    assert!(n_evicted > n_steps / 20, "{n_evicted} of {n_steps} steps evicted");
}

#[test]
fn policies_choose_as_their_twins_do() {
    for kind in [Kind::Lru, Kind::Slru, Kind::Gdsf, Kind::Hazard] {
        for seed in 1..=4 {
            check(kind, seed, 12, 1500);
            check(kind, seed, 400, 3000);
        }
    }
}
