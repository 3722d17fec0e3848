//! The columns of the table of peers, and which of them go where there is not room for all: those that say least of what is
//! wrong go first. Subnet, verdict and why stay.

use super::Look;
use super::paint::Style;
use super::table::{Cell, line, starts, wrap};

/// The least room in which a reason is shown beside its peer, if it has to be wrapped; otherwise it is below.
const BESIDE: usize = 50;

/// How far lines below a row are indented.
const BELOW: usize = 2;

/// The row of a peer, with shorter forms of its cells.
#[derive(Debug)]
pub(super) struct Row {
    /// The subnets of all families, and that of the first.
    pub(super) subnets: [Cell; 2],
    /// The node's addresses likewise.
    pub(super) nodes: [Cell; 2],
    pub(super) path: Cell,
    pub(super) state: Cell,
    pub(super) reached: Cell,
    pub(super) rtt: Cell,
    pub(super) since: Cell,
    pub(super) changed: Cell,
    /// Of backends whose tunnel has sessions: the last handshake, and what was carried.
    pub(super) handshake: Cell,
    pub(super) sent: Cell,
    pub(super) received: Cell,
    /// What is worst of state and verdict, for both columns.
    pub(super) both: Cell,
    pub(super) why: Cell,
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Subnets,
    Subnet,
    Nodes,
    Node,
    Path,
    State,
    Reached,
    Rtt,
    Since,
    Changed,
    Handshake,
    Sent,
    Received,
    Both,
}

impl Column {
    fn header(self) -> &'static str {
        match self {
            Self::Subnets | Self::Subnet => "SUBNET",
            Self::Nodes | Self::Node => "NODE",
            Self::Path => "PATH",
            Self::State | Self::Both => "STATE",
            Self::Reached => "REACHED",
            Self::Rtt => "RTT",
            Self::Since => "SINCE",
            Self::Changed => "CHANGED",
            Self::Handshake => "HANDSHAKE",
            Self::Sent => "SENT",
            Self::Received => "RECEIVED",
        }
    }

    fn cell(self, row: &Row) -> &Cell {
        match self {
            Self::Subnets => &row.subnets[0],
            Self::Subnet => &row.subnets[1],
            Self::Nodes => &row.nodes[0],
            Self::Node => &row.nodes[1],
            Self::Path => &row.path,
            Self::State => &row.state,
            Self::Reached => &row.reached,
            Self::Rtt => &row.rtt,
            Self::Since => &row.since,
            Self::Changed => &row.changed,
            Self::Handshake => &row.handshake,
            Self::Sent => &row.sent,
            Self::Received => &row.received,
            Self::Both => &row.both,
        }
    }
}

/// One step to fewer columns.
#[derive(Debug, Clone, Copy)]
enum Step {
    Drop(Column),
    Shorten(Column, Column),
    /// State and verdict become one.
    Merge,
}

/// The steps in the order in which they are made.
const STEPS: [Step; 11] = [
    Step::Drop(Column::Received),
    Step::Drop(Column::Sent),
    Step::Drop(Column::Changed),
    Step::Drop(Column::Handshake),
    Step::Shorten(Column::Nodes, Column::Node),
    Step::Shorten(Column::Subnets, Column::Subnet),
    Step::Drop(Column::Rtt),
    Step::Drop(Column::Path),
    Step::Drop(Column::Since),
    Step::Drop(Column::Node),
    Step::Merge,
];

/// What there is to show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Has {
    /// Results of probes.
    pub(super) probes: bool,
    /// Sessions.
    pub(super) sessions: bool,
    /// Whether all columns are shown.
    pub(super) all: bool,
}

/// Which columns there are, and where they begin.
#[derive(Debug)]
struct Layout {
    columns: Vec<Column>,
    starts: Vec<usize>,
    /// Where reasons begin; `None` if they are below.
    why: Option<usize>,
}

impl Layout {
    fn of(rows: &[Row], Has { probes, sessions, all }: Has, look: Look) -> Self {
        use Column::{Changed, Handshake, Nodes, Path, Reached, Received, Rtt, Sent, Since, State, Subnets};
        let mut columns =
            vec![Subnets, Nodes, Path, State, Reached, Rtt, Since, Changed, Handshake, Sent, Received];
        columns.retain(|column| match column {
            Reached | Rtt => probes,
            Changed => all,
            Handshake | Sent | Received => all && sessions,
            _ => true,
        });
        let measure = |column: Column| {
            let widths = rows.iter().map(|row| column.cell(row).width());
            widths.max().unwrap_or_default().max(column.header().len())
        };
        let mut widths: Vec<_> = columns.iter().map(|column| measure(*column)).collect();
        let total = |widths: &[usize]| widths.iter().map(|width| width + 2).sum::<usize>();
        let most = look.width.unwrap_or(usize::MAX);
        for step in STEPS {
            if total(&widths) <= most.saturating_add(2) {
                break;
            }
            match step {
                Step::Drop(gone) => columns.retain(|column| *column != gone),
                Step::Shorten(from, to) => {
                    columns.iter_mut().filter(|it| **it == from).for_each(|it| *it = to);
                }
                Step::Merge => {
                    columns.retain(|column| *column != Reached);
                    columns.iter_mut().filter(|it| **it == State).for_each(|it| *it = Column::Both);
                }
            }
            widths = columns.iter().map(|column| measure(*column)).collect();
        }
        let used = total(&widths);
        let longest = rows.iter().map(|row| row.why.width()).max().unwrap_or_default();
        let room = most.saturating_sub(used);
        let why = (room >= longest.min(BESIDE)).then_some(used);
        Self { starts: starts(&widths), columns, why }
    }

    fn header(&self, has_why: bool, look: Look) -> String {
        let mut names: Vec<_> =
            self.columns.iter().map(|column| Cell::new(column.header(), Style::Strong)).collect();
        let mut at = self.starts.clone();
        if has_why && let Some(why) = self.why {
            names.push(Cell::new("WHY", Style::Strong));
            at.push(why);
        }
        line(at.into_iter().zip(&names), look)
    }

    /// The lines of a row.
    fn lines(&self, row: &Row, look: Look) -> Vec<String> {
        let mut cells: Vec<_> =
            self.starts.iter().copied().zip(self.columns.iter().map(|it| it.cell(row))).collect();
        let indent = self.why.unwrap_or(BELOW);
        let room = look.width.map(|width| width.saturating_sub(indent));
        let mut why = Vec::new();
        if !row.why.text.is_empty() {
            let texts = wrap(&row.why.text, room).into_iter();
            why.extend(texts.map(|text| Cell { text, style: row.why.style }));
        }
        let mut rest = why.iter();
        if self.why.is_some() {
            cells.extend(rest.next().map(|first| (indent, first)));
        }
        let first = line(cells, look);
        std::iter::once(first).chain(rest.map(|text| line([(indent, text)], look))).collect()
    }
}

/// The lines of the header and of each row, in the widest form that fits.
pub(super) fn lay_out(rows: &[Row], has: Has, look: Look) -> (String, Vec<Vec<String>>) {
    let layout = Layout::of(rows, has, look);
    let has_why = rows.iter().any(|row| !row.why.text.is_empty());
    (layout.header(has_why, look), rows.iter().map(|row| layout.lines(row, look)).collect())
}
