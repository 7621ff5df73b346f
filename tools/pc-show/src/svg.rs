//! Pictures as SVG.

use std::fmt::Write as _;

/// A picture in the making.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    body: String,
}

impl Svg {
    pub fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    pub fn rectangle(&mut self, [x, y, width, height]: [f64; 4], colour: &str, title: &str) {
        let title =
            if title.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(title)) };
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}">{title}</rect>"#
        );
    }

    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], colour: &str) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"/>"#
        );
    }

    /// A text; `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    /// A text in which each letter is as wide as any other.
    pub fn code(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-family="monospace">{text}</text>"#
        );
    }

    /// A row of coloured squares with what they mean.
    pub fn legend(&mut self, y: f64, meanings: &[(&str, &str)]) {
        let mut x = 20.0;
        for (colour, meaning) in meanings {
            self.rectangle([x, y - 10.0, 12.0, 12.0], colour, "");
            self.text(x + 17.0, y, "start", meaning);
            x += 40.0 + 7.0 * meaning.len() as f64;
        }
    }

    /// The whole picture.
    pub fn finish(self, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height:.0}\" viewBox=\"0 0 {width} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
            self.body,
            width = self.width
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
