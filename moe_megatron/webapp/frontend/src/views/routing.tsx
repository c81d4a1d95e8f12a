/** The first view: the matrix, the opened expert beside it, and how the layers went. */
import { usePlace } from "../state/place";
import { ExpertView } from "./expert";
import { LayersView } from "./layers";
import { MatrixView } from "./matrix";
import { useSubject } from "../state/context";

export function RoutingView() {
  const { cell } = usePlace();
  const { run } = useSubject();
  const open = cell && run.layers.includes(cell.layer) && cell.expert < run.experts ? cell : null;
  return (
    <div className={open ? "routing with-expert" : "routing"}>
      <MatrixView />
      {open && <ExpertView cell={open} />}
      <LayersView />
    </div>
  );
}
