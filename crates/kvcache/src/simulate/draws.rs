//! Seeded random draws of the generators. Arithmetic and order are part of what they define.

/// xorshift64 (Marsaglia 2003) and what is drawn with it.
pub(super) struct Draws(u64);

impl Draws {
    pub fn new(seed: u64) -> Self {
        let mut draws = Self(seed * 7919 + 12345);
        for _ in 0..20 {
            draws.uniform();
        }
        draws
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().max(1e-12).ln()).sqrt();
        // Ten digits of a full turn: part of the definition.
        #[expect(clippy::approx_constant)]
        let turn = 6.283185307;
        radius * (turn * self.uniform()).cos()
    }

    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// 1 with probability `p_one`, else 1 + LN(8, sigma), at most 1 + `most`.
    pub fn count(&mut self, p_one: f64, sigma: f64, most: f64) -> i32 {
        if self.uniform() < p_one { 1 } else { 1 + self.log_normal(8.0, sigma).min(most) as i32 }
    }
}
