"""What the demo says, in each language."""

from typing import Any

TEXTS: dict[str, dict[str, Any]] = {
    "en": {
        "language": "Language",
        "chat": "Chat",
        "message": "Message",
        "ask": "What would you like to know?",
        "send": "Send",
        "reset": "New conversation",
        "guard": "Guard: drop answers that the toxicity model flags",
        "n": "Candidates",
        "temperature": "Temperature",
        "top_k": "Top-k (0: off)",
        "top_p": "Top-p",
        "sampling": "How answers are sampled and chosen",
        "candidates": "Candidates for the last answer",
        "columns": ["became", "reward", "toxicity", "answer"],
        "fates": {"chosen": "chosen", "unchosen": "not chosen", "flagged": "flagged", "empty": "empty"},
        "forgotten": "{} earlier messages did not fit into the model's context, and were not read.",
        "too_long": "The message has {} characters; {} are possible.",
        "explorer": "Data",
        "query": "Search the data set",
        "search": "Search",
        "over": "In",
        "prompts": "prompts",
        "completions": "completions",
        "found": "The ten nearest rows",
        "rows": ["similarity", "prompt", "completion"],
        "limits": "Limitations",
        "limitations": """\
This is a small language model, shown for research. Nothing that it says is advice.

- **It makes things up.** It states what is false as fluently as what is true, and invents sources, names and figures.
  Check what matters elsewhere.
- **It is biased.** It was trained on text by people, and repeats their stereotypes of groups of people. It may offend.
- **It wanders.** It may repeat itself, digress, or answer another question than yours, more so at a high temperature.
- **The guard errs both ways.** It is a small model, too: it lets some harmful answers pass and drops harmless ones, and
  it knows no kind of harm that it was not trained on. Switched off, nothing is dropped.
- **A high reward is no proof.** The reward model prefers what looked good to its annotators, which may be length or
  tone rather than truth.
- **It knows two languages badly.** In English and in Portuguese it is far behind large models; others it does not know.

Do not type in what should stay private.""",
    },
    "pt": {
        "language": "Idioma",
        "chat": "Conversa",
        "message": "Mensagem",
        "ask": "O que você gostaria de saber?",
        "send": "Enviar",
        "reset": "Nova conversa",
        "guard": "Guarda: descartar respostas que o modelo de toxicidade acusa",
        "n": "Candidatas",
        "temperature": "Temperatura",
        "top_k": "Top-k (0: desligado)",
        "top_p": "Top-p",
        "sampling": "Como as respostas são geradas e escolhidas",
        "candidates": "Candidatas à última resposta",
        "columns": ["destino", "recompensa", "toxicidade", "resposta"],
        "fates": {"chosen": "escolhida", "unchosen": "não escolhida", "flagged": "acusada", "empty": "vazia"},
        "forgotten": "{} mensagens anteriores não couberam no contexto do modelo e não foram lidas.",
        "too_long": "A mensagem tem {} caracteres; o limite é de {}.",
        "explorer": "Dados",
        "query": "Buscar no conjunto de dados",
        "search": "Buscar",
        "over": "Em",
        "prompts": "perguntas",
        "completions": "respostas",
        "found": "As dez linhas mais próximas",
        "rows": ["semelhança", "pergunta", "resposta"],
        "limits": "Limitações",
        "limitations": """\
Este é um modelo de linguagem pequeno, mostrado para fins de pesquisa. Nada do que ele diz é um conselho.

- **Ele inventa.** Afirma o que é falso com a mesma fluência do que é verdadeiro, e inventa fontes, nomes e números.
  Confira em outro lugar o que for importante.
- **Ele tem vieses.** Foi treinado com textos de pessoas e repete os estereótipos delas sobre grupos. Pode ofender.
- **Ele se perde.** Pode se repetir, divagar ou responder a outra pergunta, ainda mais com temperatura alta.
- **A guarda erra nos dois sentidos.** Ela também é um modelo pequeno: deixa passar respostas nocivas, descarta
  inofensivas e não conhece os tipos de dano com que não foi treinada. Desligada, nada é descartado.
- **Recompensa alta não é prova.** O modelo de recompensa prefere o que pareceu bom a quem anotou seus dados, o que pode
  ser o tamanho ou o tom, e não a verdade.
- **Ele conhece mal duas línguas.** Em inglês e em português fica muito atrás dos modelos grandes; em outras não serve.

Não escreva aqui o que deve permanecer privado.""",
    },
}
