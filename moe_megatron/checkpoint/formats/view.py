"""Views: elements of a file interpreted as a matrix, with strides between rows and columns.

Every conversion is a list of moves: the elements of one view are copied to another, in order. A
transposed or interleaved matrix is only a view with other strides, so reversing a mapping means
swapping two views. This module knows no formats.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class View:
    """address(i, j) = offset + i * row_step + j * column_step, in bytes: a matrix in a file."""

    file: int
    """Index of the file in its plan."""
    offset: int
    """Offset of element (0, 0)."""
    rows: int
    columns: int
    row_step: int
    """Distance between neighbouring elements of a column."""
    column_step: int
    """Distance between neighbouring elements of a row."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def is_packed(self, item: int) -> bool:
        """Whether the elements are contiguous, row by row."""
        column_fits = self.columns == 1 or self.column_step == item
        return column_fits and (self.rows == 1 or self.row_step == self.columns * item)

    def part(self, row: int, rows: int, column: int, columns: int) -> "View":
        """A rectangle of this view."""
        return replace(
            self,
            offset=self.offset + row * self.row_step + column * self.column_step,
            rows=rows,
            columns=columns,
        )

    def rows_from(self, row: int, rows: int) -> "View":
        """Consecutive rows of this view."""
        return self.part(row, rows, 0, self.columns)

    def every_second_column(self, first: int) -> "View":
        """Columns `first`, `first` + 2, ..."""
        kept = self.part(0, self.rows, first, (self.columns - first + 1) // 2)
        return replace(kept, column_step=2 * self.column_step)

    def transposed(self) -> "View":
        """Rows and columns swapped."""
        return replace(
            self,
            rows=self.columns,
            columns=self.rows,
            row_step=self.column_step,
            column_step=self.row_step,
        )

    def folded(self, columns: int, item: int) -> "View | None":
        """The same elements in rows of another length; None if a view cannot express that."""
        if columns == self.columns:
            return self
        if self.elements % columns or not self.is_packed(item):
            return None
        rows = self.elements // columns
        return View(self.file, self.offset, rows, columns, columns * item, item)


def packed(file: int, offset: int, rows: int, columns: int, item: int) -> View:
    """The view of a matrix that is stored contiguously, row by row."""
    return View(file, offset, rows, columns, columns * item, item)
