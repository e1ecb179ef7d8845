//! A line chart as SVG text: axes with units, a grid, a legend. Nothing but text comes out, and the same points give the same text.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 54.0;
/// About how many numbers stand at an axis.
const TICKS: f64 = 8.0;

/// One line.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) color: &'a str,
    /// By x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// What stands around the lines.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    pub(crate) lines: Vec<Line<'a>>,
}

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
        let most = |of: fn(&(f64, f64)) -> f64| {
            self.lines.iter().flat_map(|line| &line.points).map(of).fold(0.0, f64::max).max(1e-9)
        };
        let (x_step, y_step) = (step(most(|point| point.0)), step(most(|point| point.1)));
        let x_max = most(|point| point.0);
        let y_max = (most(|point| point.1) / y_step).ceil() * y_step;
        let at_x = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - y / y_max * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
            escaped(self.title)
        );
        for tick in ticks(y_max, y_step) {
            let y = at_y(tick);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                number(tick)
            );
        }
        for tick in ticks(x_max, x_step) {
            let (x, base) = (at_x(tick), HEIGHT - BOTTOM);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{base:.1}\" y2=\"{:.1}\" stroke=\"#555555\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                base + 5.0,
                base + 20.0,
                number(tick)
            );
        }
        self.axes(&mut svg);
        for (index, line) in self.lines.iter().enumerate() {
            let points: Vec<String> =
                line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let place = LEFT + 200.0 * index as f64;
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"1.5\" points=\"{1}\"/>\n\
                 <line x1=\"{place:.1}\" x2=\"{2:.1}\" y1=\"40\" y2=\"40\" stroke=\"{0}\" stroke-width=\"3\"/>\
                 <text x=\"{3:.1}\" y=\"44\">{4}</text>",
                line.color,
                points.join(" "),
                place + 24.0,
                place + 30.0,
                escaped(line.name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String) {
        let (base, middle) = (HEIGHT - BOTTOM, TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP} V{base} H{:.1}\" fill=\"none\" stroke=\"#555555\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"18\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {middle:.1})\">{}</text>",
            WIDTH - RIGHT,
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            HEIGHT - 12.0,
            escaped(self.x),
            escaped(self.y)
        );
    }
}

/// 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let rough = most / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power)
}

fn ticks(most: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..).map(move |count| f64::from(count) * step).take_while(move |tick| *tick <= most + step * 1e-6)
}

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
