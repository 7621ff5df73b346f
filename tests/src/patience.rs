//! How long a test waits: limits are meant for an idle machine, and grow with how slow this one is found to be.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// However slow a machine is, a wait ends after this many times its limit.
const MOST: f64 = 30.0;
/// Computing that is timed, in CPU time: longer than the slices that the kernel gives in turn.
const WORK: Duration = Duration::from_millis(10);
/// Sleep that is timed.
const SLEEP: Duration = Duration::from_millis(4);

/// A limit on a wait for an event.
pub struct Patience {
    limit: Duration,
    allowed: Duration,
    began: Instant,
}

impl Patience {
    /// Waits for this long on an idle machine.
    pub fn new(limit: Duration) -> Patience {
        Patience { limit, allowed: limit, began: Instant::now() }
    }

    /// Whether it is at its end. How slow the machine is, is measured only when the limit has been reached.
    pub fn is_over(&mut self) -> bool {
        let waited = self.began.elapsed();
        if waited < self.allowed {
            return false;
        }
        self.allowed = self.allowed.max(patient(self.limit));
        waited >= self.allowed
    }
}

/// A limit that is meant for an idle machine, as it is for this one now.
pub fn patient(limit: Duration) -> Duration {
    limit.mul_f64(slowness())
}

/// An option of a tool that takes a duration, meant for an idle machine: `--timeout=1500ms` there.
pub fn patient_option(name: &str, limit: Duration) -> String {
    format!("{name}={}ms", patient(limit).as_millis())
}

/// How many times longer things take than on an idle machine: 1 for one that is. Takes 42 milliseconds there.
///
/// A thread that computes gets its share of the CPUs; one that sleeps is woken late. What a test waits for is slowed
/// down by both. The median of three looks: a machine that is busy is so in all of them, and a moment in which its host
/// gave it no CPU says nothing of the next.
pub fn slowness() -> f64 {
    let mut looks: [f64; 3] = std::array::from_fn(|_| look());
    looks.sort_by(f64::total_cmp);
    if looks[1] < 1.5 { 1.0 } else { looks[1].min(MOST) }
}

fn look() -> f64 {
    let (began, before) = (Instant::now(), cpu_time());
    while cpu_time() - before < WORK {
        std::hint::spin_loop();
    }
    let share = began.elapsed().as_secs_f64() / WORK.as_secs_f64();
    let began = Instant::now();
    std::thread::sleep(SLEEP);
    let late = began.elapsed().as_secs_f64() / SLEEP.as_secs_f64();
    share * late
}

/// What this thread has had of the CPUs.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}
