/** Which tokens an expert gets most, beside their share of its layer: one that is frequent everywhere is no specialty. */
import { useState } from "react";
import type { Expert, ExpertToken } from "../data/types";
import { shownToken } from "../draw/tokens";
import { count, percent, ratio } from "../format";
import { Choice, Note } from "../parts/panel";
import { Bars } from "./expert";

const LISTED = 16;

/** How much oftener the expert gets a token than its layer does. */
const over = ({ share, null_share }: ExpertToken): number => (null_share ? (share ?? 0) / null_share : 0);

const nameOf = ({ id, text }: ExpertToken): string => (text === null ? `token ${id}` : shownToken(text));

export function Vocabulary({ expert }: { expert: Expert }) {
  const [by, order] = useState<"share" | "over">("share");
  if (!expert.tokens.length || expert.tokens_step === null) {
    return (
      <Note>
        This run has recorded no tokens of this expert up to this step: `--set telemetry.sample_tokens=true` lets a run keep the most frequent ones in
        each of its samples.
      </Note>
    );
  }
  const tokens = by === "over" ? [...expert.tokens].sort((a, b) => over(b) - over(a)) : expert.tokens;
  return (
    <>
      <Bars
        title={`Tokens of step ${count(expert.tokens_step)}`}
        rows={tokens.slice(0, LISTED).map((token) => ({
          key: token.id,
          name: nameOf(token),
          hint: `token ${token.id}: ${percent(token.share)} of what this expert gets, ${percent(token.null_share)} of the layer's, ${ratio(over(token))}`,
          share: token.share ?? 0,
          mark: token.null_share,
          says: by === "over" ? ratio(over(token)) : percent(token.share),
        }))}
        note="The mark is the token's share of the whole layer: where a bar ends at its mark, the expert gets the token as often as all do."
        code
      />
      <Choice<"share" | "over">
        label="Order"
        value={by}
        options={[
          { value: "share", text: "frequent", hint: "The most frequent tokens first" },
          { value: "over", text: "over the layer's share", hint: `Of its ${expert.tokens.length} most frequent tokens, those first that the rest of the layer gets least` },
        ]}
        pick={order}
      />
    </>
  );
}
