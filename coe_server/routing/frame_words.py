"""The words by which `frame` tells greetings, thanks and given roles from a prompt: a list for each language."""

from __future__ import annotations

# Any of these ends a text, also without a full stop before it.
THANKS = frozenset(
    """
    please pls plz thanks thank thx ty tysm ta cheers regards sincerely yours wishes
    bitte danke dank
    merci svp
    gracias
    grazie
    obrigado obrigada
    bedankt alsjeblieft alstublieft
    dziękuję proszę
    спасибо пожалуйста
    감사합니다 부탁드립니다
    """.split()
)

GREETINGS = frozenset(
    "hi hello hey hiya yo greetings dear hallo bonjour salut hola ciao olá oi hoi cześć привет здравствуйте".split()
)
OPENERS = THANKS | GREETINGS  # stand before a prompt without a full stop between

# A sentence with one of these is courteous.
COURTESIES = OPENERS | frozenset(
    """
    kindly thankyou thankful appreciate appreciated appreciation grateful gratitude sincerely sorry apologies apologize
    apologise excuse pardon bother bothering rush hurry help helping assist assistance assistant assistants stranger
    inst sys cutoff
    wondering helpful helpfully harmless chatbot chatgpt openai obliged tysm ty lifesaver
    hallo guten servus moin dankbar grüße grüßen gruß hilf helfen hilfe
    bonjour bonsoir salut plaît plait cordialement aider aide aidez
    hola buenos buenas favor saludos ayudar ayuda ayúdame ayudarme agradezco
    ciao salve buongiorno buonasera aiutare aiuto aiutarmi saluti
    olá ola ajudar ajuda cumprimentos gentileza
    hoi hartelijk helpen groeten
    cześć witam pomóc pomocy pozdrawiam
    здравствуйте привет помогите помочь благодарю
    请 谢 您
    願 こんにちは こんばんは ください てください えてください ありがとうございます
    안녕하세요 도와주세요
    """.split()
)

ROLES = frozenset(
    "system user assistant human ai bot agent instruction instructions response request prompt query task".split()
)

ENGLISH = """
everybody react reacts manner tone topic neutral structured topics job goal goals type types typed typing
shown truthfully reliable refuse message messages user users model models tremendously trouble favors favour owe
thoughts thinking guidance enlighten enlightened
no not intelligent cite nothing date apologise asking
a able about above accurate accurately across act acting actually advance advice advise after afternoon again against
agent ahead all almost along already also although always am among an and answer answering answers any anyone
anything appropriate appropriately are aren around artificial as asap ask asked asking asks assume at attached away
awfully background basic be because been before begin beginner beginning behave being below best better between bit
bless blessings both breath brief briefly bring btw buddy busy but by came can cannot care careful carefully chance
chat chatgpt clarification clarified clarify class clear clearly comes coming complete completely completes
comprehensive concerning concise concisely confused confusing consider consideration contained contains context
cordially correct correctly could couldn couple curiosity curious current currently cutoff d date day deal decades
deep detail detailed did didn difficult direction directions directly discussed do does doesn doing don done dont
dude dumb during each earlier easier easy effort either else enjoying enough ensure ensures evaluated evaluation even
evening ever every everyone everything experience experienced expert explain explaining explanation extensive factual
faithful faithfully far favor favour feel few figure figured figuring finally find finding finds fine first folks
follow following follows for forward free friday friend friendly friends from further gave get gets getting give
given gives giving glad go goes going gone gonna good got gotten great guidance guys had hadn hand happy hard has
hasn have haven having he hear heard hearing helped helpfully helps here high highly him hint hints his honest
honestly hope hoping hour hours how however huge hugely human hurry i idea if im in include included includes input
inst instead intelligence interest interested interesting into is isn it its just keeping keeps kept kind kindest
kindness knew know knowledge knowledgeable known knows language large last later least leave let letting lifesaver
light like little ll long look looked looking lost lot lots love lovely m madam make makes many mate matter matters
may maybe me mean means mentioned message might million mind mine minute minutes model moment monday more morning
most much must my myself near need needed needs neither never newbie next nice night nor note notes now obey obliged
of off ok okay on once one ones only openai opinion opinions or other others ought our ourselves out over own pal
part patience people perhaps persona pleasant pleased pleasure pointed pointer pointers pointing polite politely
possible possibly pretty problem problems professional provide provided provides providing put puts puzzle puzzled
puzzling quality query question questions quick quickest quickly quite r rather re read reading ready really reason
receive regard relevant reply replying request requested requesting require required requires respectfully respond
responding response responses right rigorous role rule rules rush s safe said saturday saw say saying says sec second
see seems seen sees send set sets several shall share she shed should shouldn show showing shown shows silly simple
since sincere sir smoothly so some someone something sometime soon soonest sort sorted sorting step still
struggle struggled struggling stuck stupid such suggest sunday support sure sys t take taking talk task tasks team
tell tells terms terribly than that the their them then there these they thing things think thinking thinks this
thorough thoroughly those though thought through thursday time tip tips to today together told tomorrow tonight too
took toward towards trained treating tricky tried tries truly trust truth truthful try trying tuesday two ty u under
understand understanding understood until up upon ur urgent urgently us use useful user users using ve very via wait
walk walked walking want wanted wants warm warmest was wasn way we wednesday week weekend welcome well went were
whatever whatsoever when whenever where whether which while who whose will willing wish wishes wishing with
within without won wonder wondered wonderful wonders words work working world worries would wouldn write writes
written wrong years yesterday yet you your yours yourself yourselves
"""
GERMAN = """
abend antwort antworten auf aufgabe beantworte beantworten bei das deine dem den der des dich die dir du eben ein
eine einem einen einer er es folgende folgendem folgenden folgender folgendes frage fragen freundlich freundlichen
für gern gerne habe herzlichen hätte ich ihnen ihr ihre ihrer im ist kann kannst kurz können könnt könnten könntest
liebe lieber mal mein meine meiner mich mir mit morgen mühe nett noch schon schöne schönen sehr sie tag und uns viele
vielen von voraus wir wäre wären würden würdest zu
"""
FRENCH = """
aimerais avance avec beaucoup bien bonne ce ces cette dans de des du en est et il j je journée l la le les ma mes
mille moi mon n nous par peux pour pourrais pourriez pouvez puis qu répondez répondre réponds réponse si suivant
suivante suivantes suivants ta te tes ton tu un une vos votre voudrais vous à
"""
SPANISH = """
al antemano con del días el es esta este gran la las le lo me mi mil mis muchas mucho muchos noches para podría
podrías por pregunta preguntas puede pueden puedes que quisiera responde responder respuesta se siguiente siguientes
su sus tardes te tus tú una unas unos usted ustedes y yo
"""
ITALIAN = """
anticipo buona ci con da dare della di domanda domande e giornata gli io la le lei lo mano mi molte per potrebbe
potresti puoi può questa questi questo rispondere rispondi risposta seguente seguenti tante ti voi vorrei
"""
PORTUGUESE = """
antecipadamente as boa bom com desde dia do em eu gostaria já me muita muito na noite o os para pergunta perguntas
pode poderia podes por resposta seguinte seguintes seu sua tarde te um uma voce você
"""
DUTCH = """
alvast antwoord dag deze dit een goede goedemiddag goedemorgen goedenavond heel het ik jij kan kun kunt met mij mijn
op u uw van veel volgende voor vraag vragen wij wil willen zou
"""
POLISH = """
bardzo czy dobry dzień góry mogłabyś możesz mógłbyś następujące odpowiedz odpowiedzieć pytanie pytaniem tego tym z za
"""
RUSSIAN = """
большое вам вас вашу вопрос вопросом вы день добрый за заранее и ли мне можете на огромное ответить ответьте помощь с
следующий следующим ты этим этот
"""
CHINESE = """
一 下 个 了 以 你 先 前 助 可 吗 回 多 好 帮 常 忙 感 我 提 烦 的 答 能 这 问 非 面 题 麻
"""
JAPANESE = """
いします に の は よろしくお を 問 次 答 質
"""
KOREAN = """
다음 답해 미리 이 정말 좀 주세요 질문에
"""

LANGUAGES = (ENGLISH, GERMAN, FRENCH, SPANISH, ITALIAN, PORTUGUESE, DUTCH, POLISH, RUSSIAN, CHINESE, JAPANESE, KOREAN)
FRAME_WORDS = COURTESIES | ROLES | frozenset(word for words in LANGUAGES for word in words.split())
