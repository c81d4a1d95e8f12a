/** Words and numbers in rows; where it is `text`, sentences in the last column. */
import { short } from "../format";

export function Table({ title, columns, rows, text }: { title: string; columns?: string[]; rows: (string | number | null)[][]; text?: boolean }) {
  return (
    <div className={text ? "table text" : "table"} tabIndex={0} role="region" aria-label={`Table: ${title}`}>
      <table>
        {columns && (
          <thead>
            <tr>
              {columns.map((name, i) => (
                <th key={i}>{name}</th>
              ))}
            </tr>
          </thead>
        )}
        <tbody>
          {rows.map((row, i) => (
            <tr key={i}>
              {row.map((cell, j) => (
                <td key={j}>{typeof cell === "number" ? short(cell) : cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
